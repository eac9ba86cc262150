/* SPDX-License-Identifier: Apache-2.0 */
/* Tensors in shared memory, as Triton's clients ask for them: see service/kserve_shared_memory.h. */
#include "service/kserve_shared_memory.h"

#include <stdlib.h>
#include <string.h>

#include "service/reply.h"

typedef Inference__SystemSharedMemoryStatusResponse__RegionStatus region_status;
typedef Inference__SystemSharedMemoryStatusResponse__RegionsEntry regions_entry;

/* --- the methods -------------------------------------------------------------------------------------------------- */

/* 0: the extension is off, the call has been answered. */
static int is_offered(bw_call *call, const bw_scorer *scorer)
{
    bw_error err;
    if (scorer->shared_memory)
        return 1;
    bw_fail(&err, BW_UNSUPPORTED, "shared memory is not offered: start the server with --shared-memory");
    bw_call_fail(call, &err);
    return 0;
}

/* protobuf-c ends strings at a NUL, so that another name would be meant. 0: the call has been answered. */
static int without_nul(bw_call *call)
{
    bw_cursor c = bw_cursor_over(call->message, call->message_slices);
    bw_wire_field f;
    int found = 0;
    while (!found && bw_wire_next(&c, &f) > 0) {
        while (!found && f.type == BW_WIRE_BYTES && f.body.left) {
            char piece[256];
            size_t n = f.body.left < sizeof piece ? f.body.left : sizeof piece;
            bw_cursor_copy(&f.body, piece, n);
            found = memchr(piece, 0, n) != NULL;
        }
    }
    if (!found)
        return 1;
    bw_error err;
    bw_fail(&err, BW_INVALID_ARGUMENT, "a name or key of a shared memory region contains a NUL: leave it out");
    bw_call_fail(call, &err);
    return 0;
}

typedef struct status_list {
    size_t count, room;
    int failed;
    struct status_item {
        region_status status;
        regions_entry entry;
        char text[2 * BW_SHARED_NAME_MAX + 3]; /* name and key */
    } * items;
} status_list;

static void add_status(const bw_shared_info *info, void *user)
{
    status_list *list = user;
    if (list->count == list->room) {
        size_t room = list->room ? list->room * 4 : 16;
        void *items = realloc(list->items, room * sizeof *list->items);
        if (!items) {
            list->failed = 1;
            return;
        }
        list->items = items;
        list->room = room;
    }
    struct status_item *item = &list->items[list->count++];
    size_t name_size = strlen(info->name) + 1;
    memcpy(item->text, info->name, name_size);
    memcpy(item->text + name_size, info->key, strlen(info->key) + 1);
    inference__system_shared_memory_status_response__region_status__init(&item->status);
    item->status.offset = info->offset;
    item->status.byte_size = info->size;
}

static void reply_statuses(bw_call *call, status_list *list)
{
    Inference__SystemSharedMemoryStatusResponse r = INFERENCE__SYSTEM_SHARED_MEMORY_STATUS_RESPONSE__INIT;
    regions_entry **entries = calloc(list->count + 1, sizeof *entries);
    if (!entries || list->failed) {
        bw_error err;
        bw_fail(&err, BW_NO_MEMORY, "out of memory for the reply: try again later");
        bw_call_fail(call, &err);
    } else {
        for (size_t i = 0; i < list->count; i++) {
            struct status_item *item = &list->items[i]; /* they move no more */
            item->status.name = item->text;
            item->status.key = item->text + strlen(item->text) + 1;
            inference__system_shared_memory_status_response__regions_entry__init(&item->entry);
            item->entry.key = item->status.name;
            item->entry.value = &item->status;
            entries[i] = &item->entry;
        }
        r.regions = entries;
        r.n_regions = list->count;
        bw_reply_message(call, &r.base);
    }
    free(entries);
}

void bw_kserve_shared_memory_status(bw_call *call, void *user)
{
    const bw_scorer *scorer = user;
    if (!is_offered(call, scorer) || !without_nul(call))
        return;
    Inference__SystemSharedMemoryStatusRequest *q = (Inference__SystemSharedMemoryStatusRequest *)bw_request_message(
        call, &inference__system_shared_memory_status_request__descriptor);
    if (!q)
        return;
    bw_error err;
    status_list list = {0};
    if (bw_shared_memory_each(scorer->shared_memory, q->name, add_status, &list, &err))
        bw_call_fail(call, &err);
    else
        reply_statuses(call, &list);
    free(list.items);
    bw_wire_unpack_free(&q->base);
}

void bw_kserve_shared_memory_register(bw_call *call, void *user)
{
    const bw_scorer *scorer = user;
    if (!is_offered(call, scorer) || !without_nul(call))
        return;
    Inference__SystemSharedMemoryRegisterRequest *q =
        (Inference__SystemSharedMemoryRegisterRequest *)bw_request_message(
            call, &inference__system_shared_memory_register_request__descriptor);
    if (!q)
        return;
    bw_error err;
    Inference__SystemSharedMemoryRegisterResponse r = INFERENCE__SYSTEM_SHARED_MEMORY_REGISTER_RESPONSE__INIT;
    if (bw_shared_memory_register(scorer->shared_memory, q->name, q->key, q->offset, q->byte_size, &err))
        bw_call_fail(call, &err);
    else
        bw_reply_message(call, &r.base);
    bw_wire_unpack_free(&q->base);
}

void bw_kserve_shared_memory_unregister(bw_call *call, void *user)
{
    const bw_scorer *scorer = user;
    if (!is_offered(call, scorer) || !without_nul(call))
        return;
    Inference__SystemSharedMemoryUnregisterRequest *q =
        (Inference__SystemSharedMemoryUnregisterRequest *)bw_request_message(
            call, &inference__system_shared_memory_unregister_request__descriptor);
    if (!q)
        return;
    Inference__SystemSharedMemoryUnregisterResponse r = INFERENCE__SYSTEM_SHARED_MEMORY_UNREGISTER_RESPONSE__INIT;
    bw_shared_memory_unregister(scorer->shared_memory, q->name);
    bw_reply_message(call, &r.base);
    bw_wire_unpack_free(&q->base);
}

/* --- parameters --------------------------------------------------------------------------------------------------- */

static bw_status take_number(uint64_t *to, int *given, const char *tensor, const char *key,
                             const Inference__InferParameter *value, bw_error *err)
{
    int kind = value ? (int)value->parameter_choice_case : 0;
    *given = 1;
    if (kind == INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_INT64_PARAM && value->int64_param >= 0)
        *to = (uint64_t)value->int64_param;
    else if (kind == INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_UINT64_PARAM)
        *to = value->uint64_param;
    else
        return bw_fail(err, BW_INVALID_ARGUMENT,
                       "tensor '%.100s': the parameter '%.60s' is no whole number of bytes: send it as int64_param",
                       tensor, key);
    return BW_OK;
}

bw_status bw_kserve_take_parameter(bw_kserve_place *place, const char *tensor, const char *key,
                                   const Inference__InferParameter *value, bw_error *err)
{
    if (!strcmp(key, "shared_memory_offset"))
        return take_number(&place->offset, &place->offset_given, tensor, key, value, err);
    if (!strcmp(key, "shared_memory_byte_size"))
        return take_number(&place->size, &place->size_given, tensor, key, value, err);
    if (!strcmp(key, "shared_memory_region")) {
        if (!value || value->parameter_choice_case != INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_STRING_PARAM)
            return bw_fail(err, BW_INVALID_ARGUMENT,
                           "tensor '%.100s': the parameter '%s' is no name: send it as string_param", tensor, key);
        place->region = value->string_param;
        return BW_OK;
    }
    if (strncmp(key, "shared_memory", 13) && strcmp(key, "classification"))
        return BW_OK;
    return bw_fail(
        err, BW_UNSUPPORTED,
        "tensor '%.100s': the parameter '%.60s' is not supported: send the values, and take the whole output", tensor,
        key);
}

bw_status bw_kserve_find_place(const bw_kserve_place *place, bw_shared_memory *m, const char *tensor,
                               bw_shared_range *range, bw_error *err)
{
    *range = (bw_shared_range){NULL, place->offset, place->size};
    if (!place->region && !place->offset_given && !place->size_given)
        return BW_OK;
    if (!m)
        return bw_fail(
            err, BW_UNSUPPORTED,
            "tensor '%.100s': shared memory is not offered: send the values in the message, or start the server "
            "with --shared-memory",
            tensor);
    if (!place->region || !place->size_given)
        return bw_fail(err, BW_INVALID_ARGUMENT,
                       "tensor '%.100s': the parameter 'shared_memory_%s' is missing: send shared_memory_region and "
                       "shared_memory_byte_size",
                       tensor, place->region ? "byte_size" : "region");
    bw_status status = bw_shared_memory_find(m, place->region, range, err);
    return status ? bw_fail_context(err, status, "tensor '%.100s'", tensor) : BW_OK;
}
