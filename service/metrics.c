/* SPDX-License-Identifier: Apache-2.0 */
/* The metrics' HTTP endpoint: see service/metrics.h. libmicrohttpd speaks HTTP; the accept loop is the server's own. */
#include "service/metrics.h"

#include <microhttpd.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "hal/base.h"
#include "service/listener.h"

/* At a time; a scraper needs one. The library's own limit (here: never reached) must not be met by a connection that
 * was added from outside: 0.9.75, Debian's, then waits for a lock that it holds itself. */
#define CONNECTIONS     32
#define NEVER           (64 * CONNECTIONS)
#define TIMEOUT_SECONDS 10

struct bw_metrics {
    bw_listener *listener;
    struct MHD_Daemon *http;
    atomic_int connections;
    void (*write)(FILE *out, void *user);
    void *user;
};

static enum MHD_Result answer(struct MHD_Connection *connection, unsigned status, char *text, size_t size,
                              const char *allow)
{
    struct MHD_Response *response = MHD_create_response_from_buffer(size, text, MHD_RESPMEM_MUST_FREE);
    if (!response) {
        free(text);
        return MHD_NO; /* closes the connection */
    }
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE,
                            status == MHD_HTTP_OK ? "text/plain; version=0.0.4; charset=utf-8" : "text/plain");
    if (allow)
        MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, allow);
    enum MHD_Result result = MHD_queue_response(connection, status, response);
    MHD_destroy_response(response);
    return result;
}

static enum MHD_Result refuse(struct MHD_Connection *connection, unsigned status, const char *text, const char *allow)
{
    char *copy = strdup(text);
    return copy ? answer(connection, status, copy, strlen(copy), allow) : MHD_NO;
}

static enum MHD_Result on_request(void *user, struct MHD_Connection *connection, const char *url, const char *method,
                                  const char *version, const char *upload, size_t *upload_size, void **state)
{
    (void)version, (void)upload, (void)upload_size, (void)state;
    bw_metrics *m = user;
    if (strcmp(url, "/metrics") != 0)
        return refuse(connection, MHD_HTTP_NOT_FOUND, "nothing here: the metrics are at /metrics\n", NULL);
    if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 && strcmp(method, MHD_HTTP_METHOD_HEAD) != 0)
        return refuse(connection, MHD_HTTP_METHOD_NOT_ALLOWED, "metrics can be read only: GET or HEAD\n", "GET, HEAD");
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (!out)
        return refuse(connection, MHD_HTTP_SERVICE_UNAVAILABLE, "out of memory: try again later\n", NULL);
    m->write(out, m->user);
    if (fclose(out)) {
        free(text);
        return refuse(connection, MHD_HTTP_SERVICE_UNAVAILABLE, "out of memory: try again later\n", NULL);
    }
    return answer(connection, MHD_HTTP_OK, text, size, NULL);
}

static void on_connection(void *user, struct MHD_Connection *connection, void **state,
                          enum MHD_ConnectionNotificationCode what)
{
    (void)connection, (void)state;
    if (what == MHD_CONNECTION_NOTIFY_CLOSED)
        atomic_fetch_sub(&((bw_metrics *)user)->connections, 1);
}

static void on_accepted(int fd, void *user)
{
    bw_metrics *m = user;
    if (atomic_fetch_add(&m->connections, 1) >= CONNECTIONS) {
        atomic_fetch_sub(&m->connections, 1);
        close(fd);
        return;
    }
    struct sockaddr_storage peer = {0};
    socklen_t size = sizeof peer;
    if (getpeername(fd, (struct sockaddr *)&peer, &size))
        size = sizeof(sa_family_t);
    if (MHD_add_connection(m->http, fd, (struct sockaddr *)&peer, size) != MHD_YES) /* it has closed it */
        atomic_fetch_sub(&m->connections, 1);
}

/* The HTTP library ends silent connections by itself. */
static void mark_none(uint8_t *in_use, int max_fd, void *user)
{
    (void)user;
    memset(in_use, 1, (size_t)max_fd + 1);
}

static void leave(int fd)
{
    (void)fd;
}

__attribute__((format(printf, 2, 0))) static void log_line(void *user, const char *format, va_list args)
{
    (void)user;
    char line[256];
    vsnprintf(line, sizeof line, format, args);
    line[strcspn(line, "\n")] = 0;
    bw_log(BW_LOG_DEBUG, "serve", "metrics: %s", line);
}

bw_status bw_metrics_open(const char *address, void (*write)(FILE *, void *), void *user, bw_metrics **metrics,
                          bw_error *err)
{
    *metrics = NULL;
    bw_metrics *m = calloc(1, sizeof *m);
    if (!m)
        return bw_fail(err, BW_NO_MEMORY, "out of memory for the metrics");
    m->write = write;
    m->user = user;
    bw_status status = bw_listener_open(address, &m->listener, err);
    if (!status) {
        m->http = MHD_start_daemon(
            MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_POLL | MHD_USE_NO_LISTEN_SOCKET | MHD_USE_ITC | MHD_USE_ERROR_LOG,
            0, NULL, NULL, on_request, m, MHD_OPTION_EXTERNAL_LOGGER, log_line, NULL, MHD_OPTION_CONNECTION_LIMIT,
            (unsigned)NEVER, MHD_OPTION_NOTIFY_CONNECTION, on_connection, m, MHD_OPTION_CONNECTION_TIMEOUT,
            (unsigned)TIMEOUT_SECONDS, MHD_OPTION_END);
        if (!m->http)
            status = bw_fail(err, BW_NO_MEMORY, "the metrics' HTTP thread cannot be started: %m");
    }
    if (!status) {
        /* By number: also when the scoring connections have taken all that are theirs. */
        bw_listener_options o = {.max_connections = 1 << 20,
                                 .idle_ms = UINT32_C(1) << 30,
                                 .accepted = on_accepted,
                                 .mark_in_use = mark_none,
                                 .take_leave = leave,
                                 .user = m};
        status = bw_listener_start(m->listener, &o, err);
    }
    if (status) {
        bw_fail_context(err, status, "metrics");
        bw_metrics_close(m);
        return status;
    }
    *metrics = m;
    return BW_OK;
}

const char *bw_metrics_address(const bw_metrics *m)
{
    return bw_listener_address(m->listener);
}

void bw_metrics_close(bw_metrics *m)
{
    if (!m)
        return;
    if (m->listener)
        bw_listener_stop(m->listener);
    if (m->http)
        MHD_stop_daemon(m->http);
    bw_listener_close(m->listener);
    free(m);
}
