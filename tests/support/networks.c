/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/networks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const struct bw_test_network bw_test_networks[] = {
    {"host/demo/digits/digits.onnx", 1},
    {"models/resnet8_cifar10_bn.onnx", 1},
    {"models/mnist_cntk.onnx", 1},
    {"models/kws_dscnn_folded.onnx", 1},
    {"models/ad01_fcae_bn.onnx", 1},
    {"models/resnet20_cifar10.onnx", 0},
    {"models/resnet20_cifar10_torch113export.onnx", 0},
    {"models/vww_mobilenet_bn.onnx", 0},
    {"models/mobilenet_v1_0.25_128_quant_deq.onnx", 0},
    {"models/squeezenet10_dc_fp32.onnx", 0},
    {"models/squeezenet11_fp32.onnx", 0},
    {"onnx/light/light_shufflenet.onnx", 0},
    {"onnx/light/light_squeezenet.onnx", 0},
    {"onnx/light/light_resnet50.onnx", 0},
    {"onnx/light/light_densenet121.onnx", 0},
    {"onnx/light/light_inception_v1.onnx", 0},
    {"onnx/light/light_inception_v2.onnx", 0},
    {"onnx/light/light_bvlc_alexnet.onnx", 0},
    {"onnx/light/light_zfnet512.onnx", 0},
    {"onnx/light/light_vgg19.onnx", 0},
};
const size_t bw_test_network_count = sizeof bw_test_networks / sizeof *bw_test_networks;

const struct bw_test_numeric bw_test_numerics[] = {
    {BW_FORMAT_MSFP16, 16},     {BW_FORMAT_MSFP15, 16},     {BW_FORMAT_MSFP14, 16},     {BW_FORMAT_MSFP13, 16},
    {BW_FORMAT_MSFP12, 16},     {BW_FORMAT_MSFP11, 16},     {BW_FORMAT_MSFP12, 64},     {BW_FORMAT_MSFP16, 128},
    {BW_FORMAT_MXINT8, 32},     {BW_FORMAT_MXFP6_E2M3, 32}, {BW_FORMAT_MXFP6_E3M2, 32}, {BW_FORMAT_MXFP4_E2M1, 32},
    {BW_FORMAT_MXFP8_E4M3, 32}, {BW_FORMAT_MXFP8_E5M2, 32}, {BW_FORMAT_MX9, 16},        {BW_FORMAT_MX6, 16},
    {BW_FORMAT_MX4, 16},        {BW_FORMAT_MX9, 64},        {BW_FORMAT_MSFP16, 32},     {BW_FORMAT_MSFP16, 64},
};
const size_t bw_test_numeric_count = sizeof bw_test_numerics / sizeof *bw_test_numerics;

int bw_test_network_path(const struct bw_test_network *n, char *path, size_t size)
{
    const char *shared = getenv("BW_SHARED");
    if (strncmp(n->path, "host/", 5) == 0)
        snprintf(path, size, "%s", n->path);
    else
        snprintf(path, size, "%s/%s", shared ? shared : "../shared/data", n->path);
    return access(path, R_OK) == 0;
}

void bw_test_fill_input(float *x, size_t n, uint32_t seed)
{
    for (size_t i = 0; i < n; i++) {
        float sum = 0.0f;
        for (int k = 0; k < 4; k++) {
            seed = seed * 1664525u + 1013904223u;
            sum += (float)(seed >> 8) / 16777216.0f - 0.5f;
        }
        x[i] = sum * 2.0f;
    }
}
