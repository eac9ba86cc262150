/* SPDX-License-Identifier: Apache-2.0 */
/* The Open Inference Protocol's questions about server and models. */
#include <string.h>

#include "host/cli.h"
#include "service/kserve.h"
#include "service/proto/inference.pb-c.h"
#include "service/reply.h"

typedef Inference__ModelMetadataResponse__TensorMetadata tensor_metadata;

void bw_kserve_server_live(bw_call *call, void *user)
{
    (void)user;
    Inference__ServerLiveResponse r = INFERENCE__SERVER_LIVE_RESPONSE__INIT;
    r.live = 1;
    bw_reply_message(call, &r.base);
}

void bw_kserve_server_ready(bw_call *call, void *user)
{
    bw_scorer *scorer = user;
    Inference__ServerReadyResponse r = INFERENCE__SERVER_READY_RESPONSE__INIT;
    r.ready = bw_repository_ready(scorer->repository);
    bw_reply_message(call, &r.base);
}

void bw_kserve_server_metadata(bw_call *call, void *user)
{
    const bw_scorer *scorer = user;
    Inference__ServerMetadataResponse r = INFERENCE__SERVER_METADATA_RESPONSE__INIT;
    char name[] = "blockwave", version[] = BW_VERSION, shared_memory[] = "system_shared_memory";
    char *extensions[] = {shared_memory};
    r.name = name;
    r.version = version;
    r.extensions = extensions;
    r.n_extensions = scorer->shared_memory ? 1 : 0;
    bw_reply_message(call, &r.base);
}

void bw_kserve_model_ready(bw_call *call, void *user)
{
    bw_scorer *scorer = user;
    Inference__ModelReadyRequest *q =
        (Inference__ModelReadyRequest *)bw_request_message(call, &inference__model_ready_request__descriptor);
    if (!q)
        return;
    bw_error err;
    bw_model *m;
    bw_status status = bw_repository_find(scorer->repository, q->name, q->version, &m, &err);
    bw_wire_unpack_free(&q->base);
    if (status && status != BW_BUSY) {
        bw_call_fail(call, &err);
        return;
    }
    Inference__ModelReadyResponse r = INFERENCE__MODEL_READY_RESPONSE__INIT;
    r.ready = !status && m->ops->alive(m->self);
    bw_reply_message(call, &r.base);
    if (!status)
        bw_model_release(m);
}

typedef struct version_list {
    const char *name;
    char *versions[64];
    size_t count;
} version_list;

static void add_version(const bw_model *m, void *user)
{
    version_list *list = user;
    if (!strcmp(m->name, list->name) && list->count < sizeof list->versions / sizeof list->versions[0])
        list->versions[list->count++] = (char *)(uintptr_t)m->version;
}

static void describe(const bw_io *const *ios, int count, tensor_metadata *tensors, tensor_metadata **pointers)
{
    for (int i = 0; i < count; i++) {
        const bw_element_traits *e = bw_element_of_dtype(ios[i]->dtype);
        inference__model_metadata_response__tensor_metadata__init(&tensors[i]);
        tensors[i].name = (char *)(uintptr_t)ios[i]->name;
        tensors[i].datatype = (char *)(uintptr_t)(e ? e->kserve : "");
        tensors[i].n_shape = (size_t)ios[i]->rank;
        tensors[i].shape = (int64_t *)(uintptr_t)ios[i]->dims;
        pointers[i] = &tensors[i];
    }
}

void bw_kserve_model_metadata(bw_call *call, void *user)
{
    bw_scorer *scorer = user;
    Inference__ModelMetadataRequest *q =
        (Inference__ModelMetadataRequest *)bw_request_message(call, &inference__model_metadata_request__descriptor);
    if (!q)
        return;
    bw_error err;
    bw_model *m;
    bw_status status = bw_repository_find(scorer->repository, q->name, q->version, &m, &err);
    bw_wire_unpack_free(&q->base);
    if (status) {
        bw_call_fail(call, &err);
        return;
    }
    Inference__ModelMetadataResponse r = INFERENCE__MODEL_METADATA_RESPONSE__INIT;
    tensor_metadata inputs[BW_MODEL_IO_MAX], outputs[BW_MODEL_IO_MAX];
    tensor_metadata *input_pointers[BW_MODEL_IO_MAX], *output_pointers[BW_MODEL_IO_MAX];
    char platform[] = "blockwave";
    version_list list = {.name = m->name};
    bw_repository_each(scorer->repository, add_version, &list);
    describe(m->inputs, m->input_count, inputs, input_pointers);
    describe(m->outputs, m->output_count, outputs, output_pointers);
    r.name = (char *)(uintptr_t)m->name;
    r.versions = list.versions;
    r.n_versions = list.count;
    r.platform = platform;
    r.inputs = input_pointers;
    r.n_inputs = (size_t)m->input_count;
    r.outputs = output_pointers;
    r.n_outputs = (size_t)m->output_count;
    bw_reply_message(call, &r.base);
    bw_model_release(m);
}
