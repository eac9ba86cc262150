/* SPDX-License-Identifier: Apache-2.0 */
/* `blockwave`: built-in commands, and like git any program `blockwave-X` as the command X. */
#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/cmd.h"

static int cmd_help(int argc, char **argv);
static int cmd_version(int argc, char **argv);

static const bw_command builtins[] = {
    {"devices", "list the devices that programs can run on", bw_cmd_devices},
    {"load", "load a bitstream onto a device", bw_cmd_load},
    {"bitstream", "write a bitstream", bw_cmd_bitstream},
    {"sign", "sign a bitstream", bw_cmd_sign},
    {"inspect", "show what is in a package", bw_cmd_inspect},
    {"run", "score pictures or arrays", bw_cmd_run},
    {"eval", "measure accuracy and speed on a data set", bw_cmd_eval},
    {"profile", "measure where a run spends its time", bw_cmd_profile},
    {"featurize", "write the features of a data set", bw_cmd_featurize},
    {"help", "show help for a command", cmd_help},
    {"version", "print the version", cmd_version},
};
/* Programs of their own that come with this one. */
static const bw_command programs[] = {
    {"quantize", "turn an ONNX network into a package", NULL},
    {"check", "say what of a network would run where", NULL},
    {"serve", "serve packages over gRPC", NULL},
    {"bench-client", "measure a scoring service under load", NULL},
    {"xrt-emulation", "run a command with emulated cards behind XRT", NULL},
};
#define COUNT(a) (sizeof(a) / sizeof *(a))

static void print_help(FILE *f)
{
    fputs("usage: blockwave COMMAND [OPTION]...\n\n", f);
    for (size_t i = 0; i < COUNT(programs); i++)
        fprintf(f, "  %-13s %s\n", programs[i].name, programs[i].summary);
    for (size_t i = 0; i < COUNT(builtins); i++)
        fprintf(f, "  %-13s %s\n", builtins[i].name, builtins[i].summary);
    fputs("\n'blockwave COMMAND --help' tells the options of a command. Any program blockwave-X beside this one or in\n"
          "PATH is the command X.\n"
          "\n"
          "exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted\n",
          f);
}

/* Replaces this process by blockwave-NAME; returns if there is none. */
static void exec_program(char **argv)
{
    char self[PATH_MAX], path[PATH_MAX], name[128];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    snprintf(name, sizeof name, "blockwave-%s", argv[0]);
    if (n > 0) {
        self[n] = 0;
        if (snprintf(path, sizeof path, "%s/%s", dirname(self), name) < (int)sizeof path)
            execv(path, argv);
    }
    execvp(name, argv);
}

/* Insertions, deletions, changes and swaps of neighbours that lead from a to b. */
static int distance(const char *a, const char *b)
{
    enum { MAX = 32 };
    int na = (int)strlen(a), nb = (int)strlen(b), d[MAX + 1][MAX + 1];
    if (na > MAX || nb > MAX)
        return MAX;
    for (int i = 0; i <= na; i++) {
        for (int k = 0; k <= nb; k++) {
            if (i == 0 || k == 0) {
                d[i][k] = i + k;
                continue;
            }
            int best = d[i - 1][k - 1] + (a[i - 1] != b[k - 1]);
            best = d[i - 1][k] + 1 < best ? d[i - 1][k] + 1 : best;
            best = d[i][k - 1] + 1 < best ? d[i][k - 1] + 1 : best;
            if (i > 1 && k > 1 && a[i - 1] == b[k - 2] && a[i - 2] == b[k - 1] && d[i - 2][k - 2] + 1 < best)
                best = d[i - 2][k - 2] + 1;
            d[i][k] = best;
        }
    }
    return d[na][nb];
}

static void consider(const char *name, const char *candidate, const char **best, int *score)
{
    int prefix = strncmp(name, candidate, strlen(name)) == 0 && strlen(name) >= 2;
    int d = prefix ? 0 : distance(name, candidate);
    if (d < *score) {
        *score = d;
        *best = candidate;
    }
}

static int unknown(const char *name)
{
    const char *best = NULL;
    int score = 3; /* more changes than two make another word */
    for (size_t i = 0; i < COUNT(builtins); i++)
        consider(name, builtins[i].name, &best, &score);
    for (size_t i = 0; i < COUNT(programs); i++)
        consider(name, programs[i].name, &best, &score);
    for (size_t i = 0; i < COUNT(programs); i++) {
        if (strcmp(programs[i].name, name) == 0) {
            fprintf(stderr, "blockwave: the program 'blockwave-%s' is neither beside this one nor in PATH\n", name);
            return BW_EXIT_USAGE;
        }
    }
    fprintf(stderr, "blockwave: '%s' is not a command", name);
    if (best)
        fprintf(stderr, ", did you mean '%s'?\n", best);
    else
        fputs(", see 'blockwave help'\n", stderr);
    return BW_EXIT_USAGE;
}

static int is_word(const char *s)
{
    return *s && *s != '-' && strlen(s) <= 64 && strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789-_") == strlen(s);
}

static int run_command(int argc, char **argv)
{
    for (size_t i = 0; i < COUNT(builtins); i++) {
        if (strcmp(builtins[i].name, argv[0]) == 0)
            return builtins[i].run(argc, argv);
    }
    if (!is_word(argv[0])) {
        fprintf(stderr, "blockwave: '%s' is not a command, see 'blockwave help'\n", argv[0]);
        return BW_EXIT_USAGE;
    }
    fflush(NULL);
    exec_program(argv);
    return unknown(argv[0]);
}

static int cmd_help(int argc, char **argv)
{
    if (argc < 2 || argv[1][0] == '-') {
        print_help(stdout);
        return BW_EXIT_OK;
    }
    static char option[] = "--help";
    char *ask[] = {argv[1], option, NULL};
    if (strcmp(argv[1], "help") == 0 || strcmp(argv[1], "version") == 0) {
        print_help(stdout);
        return BW_EXIT_OK;
    }
    return run_command(2, ask);
}

static int cmd_version(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    printf("blockwave %s\n", BW_VERSION);
    return BW_EXIT_OK;
}

static int runs_networks(const char *name)
{
    static const char *const names[] = {"run", "eval", "profile", "featurize"};
    for (size_t i = 0; i < COUNT(names); i++) {
        if (strcmp(names[i], name) == 0)
            return 1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        print_help(stderr);
        return BW_EXIT_USAGE;
    }
    int code;
    if (runs_networks(argv[1]))
        bw_cli_let_threads_sleep(argv);
    if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0) {
        code = cmd_version(argc, argv);
    } else if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_help(stdout);
        code = BW_EXIT_OK;
    } else {
        code = run_command(argc - 1, argv + 1);
    }
    if (fflush(stdout) || ferror(stdout)) {
        fprintf(stderr, "blockwave: cannot write to standard output: %s\n", strerror(errno));
        return code ? code : BW_EXIT_FAILURE;
    }
    return code;
}
