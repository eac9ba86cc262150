/* SPDX-License-Identifier: Apache-2.0 */
/* What a user of the installed library writes: opens a package on the simulated device and scores zeros. */
#include <hal/hal.h>
#include <host/package.h>
#include <host/session.h>
#include <sim/sim.h>
#include <stdio.h>

static int fail(const bw_error *err)
{
    fprintf(stderr, "example: %s\n", err->message);
    return 1;
}

int main(int argc, char **argv)
{
    bw_error err;
    bw_device *device;
    bw_package *package;
    bw_session *session;
    if (argc != 2)
        return 2;
    if (bw_sim_register(&err) || bw_device_open("sim:", &device, &err))
        return fail(&err);
    if (bw_package_open(argv[1], &package, &err) || bw_session_open(package, device, &session, &err))
        return fail(&err);
    const bw_io *io = bw_session_input(session, 0);
    bw_array in, out = {0};
    int64_t dims[BW_RANK_MAX] = {1};
    for (int i = 1; i < io->rank; i++)
        dims[i] = io->dims[i];
    if (bw_array_alloc(&in, BW_F32, io->rank, dims, &err))
        return fail(&err);
    for (int64_t i = 0; i < bw_array_count(&in); i++)
        ((float *)in.data)[i] = 0.0f;
    if (bw_session_run(session, &in, &out, NULL, &err))
        return fail(&err);
    printf("%s: %lld outputs\n", bw_session_model_name(session), (long long)bw_array_count(&out));
    bw_array_free(&in);
    bw_array_free(&out);
    bw_session_close(session);
    bw_package_close(package);
    bw_device_close(device);
    return 0;
}
