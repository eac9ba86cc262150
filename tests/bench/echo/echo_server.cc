// SPDX-License-Identifier: Apache-2.0
// The yardstick of `make bench-service`: a ModelInfer server in C++ with gRPC's asynchronous completion queue API, which
// sends each raw input back as an output and does nothing else. The contents are swapped from the request into the
// reply, not copied: no C++ server over these messages can do less.
//
//     echo_server PORT_FILE [plain | tuned]
//
// plain: as such servers are written. tuned (default): with the same memory, lock and channel settings as
// blockwave-serve, so that what remains is the servers' own work.
#include <dlfcn.h>
#include <grpcpp/grpcpp.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include <string>
#include <thread>

#include "inference.grpc.pb.h"

namespace {

using inference::GRPCInferenceService;
using inference::ModelInferRequest;
using inference::ModelInferResponse;

class Call {
  public:
    Call(GRPCInferenceService::AsyncService *service, grpc::ServerCompletionQueue *queue)
        : service_(service), queue_(queue), writer_(&context_)
    {
        service_->RequestModelInfer(&context_, &request_, &writer_, queue_, queue_, this);
    }

    void Proceed(bool ok)
    {
        if (!ok || finished_) {
            delete this;
            return;
        }
        new Call(service_, queue_);
        reply_.set_model_name(request_.model_name());
        reply_.set_id(request_.id());
        for (int i = 0; i < request_.inputs_size() && i < request_.raw_input_contents_size(); i++) {
            auto *out = reply_.add_outputs();
            out->set_name(request_.inputs(i).name());
            out->set_datatype(request_.inputs(i).datatype());
            *out->mutable_shape() = request_.inputs(i).shape();
            reply_.add_raw_output_contents()->swap(*request_.mutable_raw_input_contents(i));
        }
        finished_ = true;
        writer_.Finish(reply_, grpc::Status::OK, this);
    }

  private:
    GRPCInferenceService::AsyncService *service_;
    grpc::ServerCompletionQueue *queue_;
    grpc::ServerContext context_;
    ModelInferRequest request_;
    ModelInferResponse reply_;
    grpc::ServerAsyncResponseWriter<ModelInferResponse> writer_;
    bool finished_ = false;
};

void Tune()
{
    mallopt(M_MMAP_THRESHOLD, 128 << 20);
    mallopt(M_TRIM_THRESHOLD, 128 << 20);
    mallopt(M_TOP_PAD, 16 << 20);
    void *symbol = dlsym(RTLD_DEFAULT, "_ZN4absl7debian329SetMutexDeadlockDetectionModeENS0_15OnDeadlockCycleE");
    if (symbol)
        reinterpret_cast<void (*)(int)>(symbol)(0);
}

} // namespace

int main(int argc, char **argv)
{
    bool tuned = argc < 3 || strcmp(argv[2], "plain") != 0;
    if (argc < 2) {
        fprintf(stderr, "usage: echo_server PORT_FILE [plain | tuned]\n");
        return 2;
    }
    if (tuned)
        Tune();
    sigset_t end;
    sigemptyset(&end);
    sigaddset(&end, SIGTERM);
    sigaddset(&end, SIGINT);
    pthread_sigmask(SIG_BLOCK, &end, nullptr);

    GRPCInferenceService::AsyncService service;
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.SetMaxReceiveMessageSize(64 << 20);
    if (tuned) {
        builder.AddChannelArgument(GRPC_ARG_ENABLE_PER_MESSAGE_COMPRESSION, 0);
        builder.AddChannelArgument(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0);
        builder.AddChannelArgument(GRPC_ARG_ENABLE_CHANNELZ, 0);
    }
    builder.RegisterService(&service);
    auto queue = builder.AddCompletionQueue();
    auto server = builder.BuildAndStart();
    if (!server || !port) {
        fprintf(stderr, "echo_server: cannot listen on 127.0.0.1\n");
        return 1;
    }
    new Call(&service, queue.get());
    std::thread poll([&queue] {
        void *tag;
        bool ok;
        while (queue->Next(&tag, &ok))
            static_cast<Call *>(tag)->Proceed(ok);
    });
    std::string part = std::string(argv[1]) + ".part";
    FILE *f = fopen(part.c_str(), "w");
    if (!f || fprintf(f, "%d\n", port) < 0 || fclose(f) || rename(part.c_str(), argv[1])) {
        fprintf(stderr, "echo_server: cannot write %s\n", argv[1]);
        return 1;
    }
    int number;
    sigwait(&end, &number);
    server->Shutdown();
    queue->Shutdown();
    poll.join();
    return 0;
}
