/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The devices that conformance tests run on: those of the environment BW_DEVICES ("URI URI..."), else all that the HAL
 * sees, with the plug-ins of this build. A backend that cannot be used is printed as a SKIP with its reason.
 */
#ifndef BW_TESTS_SUPPORT_DEVICES_H
#define BW_TESTS_SUPPORT_DEVICES_H

#define BW_TEST_DEVICES_MAX 16
#define BW_TEST_CASES_MAX   16

struct bw_test_devices {
    char uris[BW_TEST_DEVICES_MAX][128];
    unsigned count;
};

/* Registers the simulator and fills `devices`. `more`: URIs to add to what the HAL sees, ended by NULL; may be NULL.
 * 0, or -1 after a "not ok" line. */
int bw_test_devices_find(struct bw_test_devices *devices, const char *const *more);

/* A cmocka test whose *state is the URI of a device. */
struct bw_test_case {
    const char *name;
    void (*run)(void **state);
};

/* Every case on every device of bw_test_devices_find, as one group; what main returns. */
int bw_test_devices_main(const char *group, const struct bw_test_case *cases, unsigned count, const char *const *more);

/* Makes the plug-ins of this build (beside BW_BIN) the ones that are found. */
void bw_test_use_plugins(void);

#endif
