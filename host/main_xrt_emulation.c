/* SPDX-License-Identifier: Apache-2.0 */
/* blockwave-xrt-emulation: runs a command with emulated cards behind XRT, and writes the accelerator's xclbin. */
#include <errno.h>
#include <ftw.h>
#include <getopt.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "hal/base.h"
#include "hal/bitstream.h"
#include "host/cli.h"
#include "kernels/xclbin.h"

static const char help[] =
    "usage: blockwave-xrt-emulation run [OPTION]... -- COMMAND [ARGUMENT]...\n"
    "       blockwave-xrt-emulation write FILE.xclbin|FILE.bwbit\n"
    "\n"
    "run: runs COMMAND with emulated cards behind the genuine XRT libraries: devices xrt:0, xrt:1, ...\n"
    "     What XRT needs for that lies in a folder of its own below /tmp, which is removed at the end.\n"
    "  --cards N      so many cards, 1..16 (1)\n"
    "  --mode MODE    sw_emu: XRT drives the card by whole commands; hw_emu: register by register (sw_emu)\n"
    "  --opencl       the cards are the only OpenCL devices, too, through XRT's OpenCL library\n"
    "  --faults DIR   faults that the cards shall have, see blockwave-xrt-emulation(1)\n"
    "write: writes the accelerator's description for XRT, as it is or as a bitstream container for 'blockwave load'\n"
    "  -h, --help\n";

#define WHO "xrt-emulation"
/* The ICD loader finds it as it finds any library. */
#define OPENCL_LIBRARY "libxilinxopencl.so.2"

static bw_status fail_path(bw_error *err, const char *path)
{
    return bw_fail_errno(err, "write", path, errno);
}

/* --- the accelerator's xclbin --------------------------------------------------------------------------------------
 */

static bw_status write_file(const char *path, int container, bw_error *err)
{
    void *xclbin, *bytes = NULL;
    size_t size;
    bw_status status = bw_xclbin_write(bw_accelerator_find(NULL), NULL, 0, &xclbin, &size, err);
    if (status)
        return status;
    bw_slice slice = {xclbin, size};
    if (container) {
        bw_bitstream *bits = calloc(1, sizeof *bits);
        if (!bits) {
            free(xclbin);
            return bw_fail(err, BW_NO_MEMORY, "no memory for a bitstream");
        }
        status = bw_bitstream_of_xclbin(xclbin, size, bits, err);
        if (!status)
            status = bw_bitstream_write(bits, &bytes, &size, err);
        slice = (bw_slice){bytes, size};
        free(bits);
    }
    if (!status)
        status = bw_file_write_atomic(path, &slice, 1, err);
    free(bytes);
    free(xclbin);
    return status;
}

static int ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n > m && strcmp(text + n - m, end) == 0;
}

static int cmd_write(int argc, char **argv)
{
    if (argc == 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        fputs(help, stdout);
        return BW_EXIT_OK;
    }
    if (argc != 2)
        return bw_cli_usage(WHO, "write: expected one file name, got %d", argc - 1);
    int container = ends_with(argv[1], ".bwbit");
    if (!container && !ends_with(argv[1], ".xclbin"))
        return bw_cli_usage(WHO, "write: '%s' ends in neither .xclbin nor .bwbit", argv[1]);
    bw_error err;
    return write_file(argv[1], container, &err) ? bw_cli_fail(WHO, &err) : BW_EXIT_OK;
}

/* --- the folder ----------------------------------------------------------------------------------------------------
 */

typedef struct plan {
    int cards, opencl;
    const char *mode, *faults;
    char tree[64];
    char shims[PATH_MAX], card[PATH_MAX];
} plan;

/* The folder's name is the "user" whose sockets lie in it. XRT's paths have little room: always below /tmp. */
static const char *user_of(const plan *p)
{
    return strrchr(p->tree, '/') + 1;
}

static bw_status make_folders(const plan *p, const char *below, bw_error *err)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", p->tree, below);
    for (char *at = path + strlen(p->tree) + 1; (at = strchr(at, '/')); *at++ = '/') {
        *at = 0;
        if (mkdir(path, 0700) && errno != EEXIST)
            return fail_path(err, path);
    }
    return BW_OK;
}

static bw_status put_text(const plan *p, const char *name, const char *text, bw_error *err)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", p->tree, name);
    bw_slice slice = {text, strlen(text)};
    return bw_file_write_atomic(path, &slice, 1, err);
}

static bw_status put_link(const plan *p, const char *name, const char *target, bw_error *err)
{
    char path[PATH_MAX];
    bw_status status = make_folders(p, name, err);
    snprintf(path, sizeof path, "%s/%s", p->tree, name);
    return status ? status : symlink(target, path) ? fail_path(err, path) : BW_OK;
}

/* "OclFreqency" is XRT's spelling. */
static bw_status put_emconfig(const plan *p, bw_error *err)
{
    const bw_accelerator *a = bw_accelerator_find(NULL);
    char text[4096], banks[1024] = "";
    for (unsigned i = 0; i < a->bank_count; i++)
        snprintf(banks + strlen(banks), sizeof banks - strlen(banks), "%s{\"Size\":\"%lluG\"}", i ? "," : "",
                 (unsigned long long)(a->bank_bytes >> 30));
    snprintf(
        text, sizeof text,
        "{\"Version\":{\"FileVersion\":\"2.0\"},\"Platform\":{\"Boards\":[{\"NumBoards\":\"1\",\"Devices\":[{"
        "\"Name\":\"%s\",\"HalMajorVersion\":\"1\",\"HalMinorVersion\":\"0\",\"VendorId\":\"4334\",\"DeviceId\":\"0\","
        "\"SubsystemVendorId\":\"0\",\"DeviceVersion\":\"0\",\"NumDevices\":\"%d\",\"DataAlignment\":\"4096\","
        "\"OclFreqency\":\"%u\",\"DdrBanks\":[%s]}]}]}}\n",
        a->platform, p->cards, BW_ACCEL_CLOCK_MHZ, banks);
    return put_text(p, "emconfig.json", text, err);
}

/* kds_sw_emu=false: XRT's own scheduler thread sleeps while nothing runs (while something does, the card lets it wait).
 * keep_run_dir=false: a card that is opened again and again must not fill the disk. */
static bw_status put_ini(const plan *p, bw_error *err)
{
    char text[1024];
    snprintf(text, sizeof text,
             "[Runtime]\nverbosity=0\nruntime_log=null\n\n[Emulation]\nkeep_run_"
             "dir=false\n"
             "print_infos_in_console=false\nprint_warnings_in_console=false\nprint_errors_in_console=false\n%s%s%s",
             strcmp(p->mode, "hw_emu") == 0 ? "sim_dir=" : "", strcmp(p->mode, "hw_emu") == 0 ? p->tree : "",
             strcmp(p->mode, "hw_emu") == 0 ? "/sim\n" : "");
    return put_text(p, "xrt.ini", text, err);
}

static bw_status build_tree(const plan *p, bw_error *err)
{
    static const char *const shims[] = {"libxrt_swemu.so.2", "libxrt_hwemu.so.2"};
    char path[PATH_MAX + 32], name[64];
    bw_status status = BW_OK;
    for (int i = 0; i < 2 && !status; i++) {
        snprintf(path, sizeof path, "%s/%s", p->shims, shims[i]);
        snprintf(name, sizeof name, "xrt/lib/%s", shims[i]);
        if (access(path, R_OK) == 0)
            status = put_link(p, name, path, err);
    }
    status = status
                 ? status
                 : put_link(p, "vitis/data/emulation/unified/cpu_em/generic_pcie/model/genericpciemodel", p->card, err);
    status = status ? status : put_link(p, "sim/simulate.sh", p->card, err);
    status = status ? status : make_folders(p, "run/", err);
    status = status ? status : put_emconfig(p, err);
    status = status ? status : put_ini(p, err);
    /* A folder of its own: other programs that ask for OpenCL platforms would end without XRT's environment. */
    if (!status && p->opencl && !(status = make_folders(p, "icd/", err)))
        status = put_text(p, "icd/xilinx.icd", OPENCL_LIBRARY "\n", err);
    snprintf(path, sizeof path, "%s/blockwave.xclbin", p->tree);
    return status ? status : write_file(path, 0, err);
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    remove(path);
    return 0;
}

static void set_environment(const plan *p)
{
    static const char *const others[] = {"XILINX_SDX",    "XILINX_SCOUT",       "XILINX_OPENCL",     "XILINX_HLS",
                                         "XILINX_VIVADO", "SW_EMU_PACKET_SIZE", "EMULATION_SOCKETID"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        unsetenv(others[i]);
    const struct {
        const char *name, *below;
    } paths[] = {{"XILINX_XRT", "/xrt"},         {"XILINX_VITIS", "/vitis"},   {"EMCONFIG_PATH", ""},
                 {"SDACCEL_EM_RUN_DIR", "/run"}, {"XRT_INI_PATH", "/xrt.ini"}, {"BW_XRT_XCLBIN", "/blockwave.xclbin"}};
    char path[PATH_MAX];
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        snprintf(path, sizeof path, "%s%s", p->tree, paths[i].below);
        setenv(paths[i].name, path, 1);
    }
    if (p->opencl) {
        snprintf(path, sizeof path, "%s/icd", p->tree);
        setenv("OCL_ICD_VENDORS", path, 1);
    }
    setenv("XCL_EMULATION_MODE", p->mode, 1);
    setenv("USER", user_of(p), 1);
    if (p->faults)
        setenv("BW_CARD_FAULTS", p->faults, 1);
    else
        unsetenv("BW_CARD_FAULTS");
}

/* --- running -------------------------------------------------------------------------------------------------------
 */

static volatile sig_atomic_t asked; /* a signal to hand on */

static void on_signal(int number)
{
    asked = number;
}

/* Cards outlive a command that was killed for a moment; this process becomes their parent. */
static void wait_for_cards(void)
{
    for (int i = 0; i < 500; i++) {
        pid_t pid = waitpid(-1, NULL, WNOHANG);
        if (pid < 0)
            return;
        if (pid == 0)
            nanosleep(&(struct timespec){0, 4000000}, NULL);
    }
    char path[64];
    snprintf(path, sizeof path, "/proc/self/task/%d/children", (int)getpid());
    FILE *f = fopen(path, "r");
    for (int pid; f && fscanf(f, "%d", &pid) == 1;)
        kill(pid, SIGKILL);
    if (f)
        fclose(f);
    while (waitpid(-1, NULL, 0) > 0)
        ;
}

static int run_command(const plan *p, char **command)
{
    sigset_t handed, before;
    sigemptyset(&handed);
    const int numbers[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGCHLD};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        sigaddset(&handed, numbers[i]);
        struct sigaction action = {.sa_handler = on_signal};
        sigaction(numbers[i], &action, NULL);
    }
    sigprocmask(SIG_BLOCK, &handed, &before);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    fflush(NULL);
    const pid_t parent = getpid(), child = fork();
    if (child == 0) {
        for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
            signal(numbers[i], SIG_DFL);
        sigprocmask(SIG_SETMASK, &before, NULL);
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        if (getppid() != parent)
            _exit(BW_EXIT_FAILURE);
        set_environment(p);
        execvp(command[0], command);
        fprintf(stderr, "blockwave-" WHO ": %s: %s\n", command[0], strerror(errno));
        _exit(errno == ENOENT ? 127 : 126);
    }
    if (child < 0) {
        fprintf(stderr, "blockwave-" WHO ": cannot start '%s': %s\n", command[0], strerror(errno));
        return BW_EXIT_FAILURE;
    }
    int status = 0;
    while (waitpid(child, &status, WNOHANG) == 0) {
        asked = 0;
        sigsuspend(&before);
        /* The terminal has sent SIGINT and SIGQUIT to the command as well. */
        if (asked == SIGTERM || asked == SIGHUP)
            kill(child, asked);
    }
    wait_for_cards();
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* Beside this program, or where `make install` puts them. */
static bw_status find_parts(plan *p, bw_error *err)
{
    char self[PATH_MAX - 64];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = 0;
    const char *folder = dirname(self);
    const struct {
        const char *card, *shims;
    } places[] = {{"blockwave-card", "../lib/xrt"}, {"../libexec/blockwave/blockwave-card", "../lib/blockwave/xrt"}};
    for (int i = 0; i < 2; i++) {
        char path[PATH_MAX];
        snprintf(path, sizeof path, "%s/%s", folder, places[i].card);
        if (!p->card[0] && !realpath(path, p->card))
            p->card[0] = 0;
        snprintf(path, sizeof path, "%s/%s", folder, places[i].shims);
        if (!p->shims[0] && !realpath(path, p->shims))
            p->shims[0] = 0;
    }
    if (!p->card[0])
        return bw_fail(err, BW_NOT_FOUND, "the program blockwave-card is not beside this one (%s): build or install it",
                       folder);
    char path[PATH_MAX + 32];
    const char *shim = strcmp(p->mode, "sw_emu") == 0 ? "libxrt_swemu.so.2" : "libxrt_hwemu.so.2";
    snprintf(path, sizeof path, "%s/%s", p->shims, shim);
    if (!p->shims[0] || access(path, R_OK))
        return bw_fail(
            err, BW_UNSUPPORTED,
            "%s was not built: XRT's static libraries were missing: install libxrt-dev and libxrt1, and build "
            "again",
            shim);
    return BW_OK;
}

static int cmd_run(int argc, char **argv)
{
    static const struct option options[] = {
        {"cards", required_argument, NULL, 'n'},  {"mode", required_argument, NULL, 'm'},
        {"faults", required_argument, NULL, 'f'}, {"opencl", no_argument, NULL, 'o'},
        {"help", no_argument, NULL, 'h'},         {NULL, 0, NULL, 0}};
    plan p = {.cards = 1, .mode = "sw_emu"};
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, "+:h", options, NULL)) != -1;) {
        if (c == 'h') {
            fputs(help, stdout);
            return BW_EXIT_OK;
        }
        if (c == ':' || c == '?')
            return bw_cli_usage(WHO, "run: %s '%s'", c == ':' ? "no value for option" : "unknown option",
                                argv[optind - 1]);
        char *end = NULL;
        if (c == 'n') {
            long n = strtol(optarg, &end, 10);
            if (end == optarg || *end || n < 1 || n > 16)
                return bw_cli_usage(WHO, "run: --cards is '%s', expected a number in 1..16", optarg);
            p.cards = (int)n;
        }
        if (c == 'o')
            p.opencl = 1;
        if (c == 'm')
            p.mode = optarg;
        if (c == 'f')
            p.faults = optarg;
    }
    if (strcmp(p.mode, "sw_emu") != 0 && strcmp(p.mode, "hw_emu") != 0)
        return bw_cli_usage(WHO, "run: --mode is '%s', expected sw_emu or hw_emu", p.mode);
    if (optind == argc)
        return bw_cli_usage(WHO, "run: there is no command");
    char faults[PATH_MAX];
    if (p.faults && !realpath(p.faults, faults))
        return bw_cli_usage(WHO, "run: --faults %s: %s", p.faults, strerror(errno));
    p.faults = p.faults ? faults : NULL;
    bw_error err;
    bw_status status = find_parts(&p, &err);
    if (!status) {
        snprintf(p.tree, sizeof p.tree,
                 "/tmp/blockwave-xrt."
                 "XX"
                 "XX"
                 "XX");
        if (!mkdtemp(p.tree))
            status = fail_path(&err, p.tree);
    }
    if (status)
        return bw_cli_fail(WHO, &err);
    status = build_tree(&p, &err);
    int code = status ? bw_cli_fail(WHO, &err) : run_command(&p, argv + optind);
    nftw(p.tree, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    return code;
}

int main(int argc, char **argv)
{
    if (argc >= 2 && strcmp(argv[1], "run") == 0)
        return cmd_run(argc - 1, argv + 1);
    if (argc >= 2 && strcmp(argv[1], "write") == 0)
        return cmd_write(argc - 1, argv + 1);
    if (argc == 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        fputs(help, stdout);
        return BW_EXIT_OK;
    }
    return argc < 2 ? bw_cli_usage(WHO, "expected 'run' or 'write'")
                    : bw_cli_usage(WHO, "'%s' is neither 'run' nor 'write'", argv[1]);
}
