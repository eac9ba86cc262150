/* SPDX-License-Identifier: Apache-2.0 */
/* gRPC is not built for ThreadSanitizer: what goes through it is told where it goes in and where it comes out. */
#ifndef BW_SERVICE_GRPC_TSAN_H
#define BW_SERVICE_GRPC_TSAN_H

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define BW_TSAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__) || defined(BW_TSAN)
void __tsan_acquire(void *at);
void __tsan_release(void *at);
#define BW_HAND_OVER(at) __tsan_release(at)
#define BW_TAKE_OVER(at) __tsan_acquire(at)
#else
#define BW_HAND_OVER(at) ((void)(at))
#define BW_TAKE_OVER(at) ((void)(at))
#endif

#endif
