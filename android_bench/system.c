/* The clock, the cores, memory and files, with system calls alone. */
#include "bench.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define MAX_CORES 1024
#define MAX_CLUSTERS 16
#define TICK_MS 10 /* cpufreq counts in USER_HZ, which every architecture's kernel shows as 100 */
#define BITS_PER_WORD (8 * sizeof(unsigned long))

double now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

void sleep_until(double until_ms) {
    for (double left = until_ms - now_ms(); left > 0; left = until_ms - now_ms()) {
        long seconds = (long)(left / 1e3);
        struct timespec pause = {seconds, (long)((left - (double)seconds * 1e3) * 1e6)};
        nanosleep(&pause, NULL); /* a signal ends it early */
    }
}

void log_line(const char *format, ...) {
    char line[1024] = "amc-bench: ";
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line + 11, sizeof line - 12, format, arguments);
    va_end(arguments);
    strcat(line, "\n");
    if (write(2, line, strlen(line)) < 0) return; /* nowhere left to say it */
}

/* `4-5,7` -> bits. The kernel's own list form. */
static bool parse_cores(const char *list, unsigned long *mask) {
    const char *at = list;
    for (;;) {
        long range[2];
        for (int i = 0; i < 2; i++) {
            if (*at < '0' || *at > '9') return false;
            range[i] = 0;
            for (; *at >= '0' && *at <= '9' && range[i] < MAX_CORES; at++) range[i] = range[i] * 10 + (*at - '0');
            if (range[i] >= MAX_CORES) return false;
            if (i == 1 || *at != '-') {
                if (i == 0) range[1] = range[0];
                break;
            }
            at++;
        }
        if (range[0] > range[1]) return false;
        for (long core = range[0]; core <= range[1]; core++)
            mask[(size_t)core / BITS_PER_WORD] |= 1ul << ((size_t)core % BITS_PER_WORD);
        if (!*at) return true;
        if (*at++ != ',') return false;
    }
}

static bool is_pinned;

bool set_cores(const char *list, Message *why) {
    unsigned long mask[MAX_CORES / BITS_PER_WORD] = {0};
    if (!parse_cores(list, mask)) return fail(why, "cores %s is not a list such as 4-5,7", list);
    if (sched_setaffinity(0, sizeof mask, (const cpu_set_t *)(void *)mask) != 0)
        return fail(why, "the kernel refuses to run this process on cores %s", list);
    is_pinned = true;
    return true;
}

/* The rest of the line of /proc/self/status that starts with `key`, without leading blanks; "" where there is none. */
static void status_line(const char *key, char *value, size_t size) {
    Text status = {0};
    Message ignored;
    value[0] = 0;
    if (!read_file("/proc/self/status", 1u << 20, &status, &ignored)) return;
    for (char *line = status.bytes; line && *line;) {
        char *end = strchr(line, '\n');
        if (end) *end = 0;
        if (!strncmp(line, key, strlen(key))) {
            line += strlen(key);
            snprintf(value, size, "%s", line + strspn(line, " \t"));
            break;
        }
        line = end ? end + 1 : NULL;
    }
    text_free(&status);
}

void cores_seen(char *list, size_t size) { status_line("Cpus_allowed_list:", list, size); }

void reset_peak_memory(void) {
    static bool is_told;
    int file = open("/proc/self/clear_refs", O_WRONLY);
    bool is_reset = file >= 0 && write(file, "5", 1) == 1; /* 5: VmHWM */
    if (file >= 0) close(file);
    if (!is_reset && !is_told) log_line("the peak memory cannot be reset: it is that of all models so far");
    is_told = is_told || !is_reset;
}

static long status_number(const char *key) {
    char value[64];
    status_line(key, value, sizeof value);
    return value[0] >= '0' && value[0] <= '9' ? strtol(value, NULL, 10) : -1;
}

long peak_memory_kb(void) { return status_number("VmHWM:"); }

long memory_kb(void) { return status_number("VmRSS:"); }

/* Whether one of the numbers in the text, as in `4 5 6 7`, is among the cores. */
static bool holds_core(const char *text, const unsigned long *mask) {
    while (*text) {
        char *end;
        long core = strtol(text, &end, 10);
        if (end == text) return false;
        if (core >= 0 && core < MAX_CORES && mask[(size_t)core / BITS_PER_WORD] >> ((size_t)core % BITS_PER_WORD) & 1)
            return true;
        text = end;
    }
    return false;
}

typedef struct {
    char paths[MAX_CLUSTERS][512]; /* of the files that tell */
    int count;
} Clusters;

static void find_clusters(Clusters *clusters) {
    unsigned long mask[MAX_CORES / BITS_PER_WORD] = {0};
    char list[1024];
    const char *folder = getenv("AMC_BENCH_CPU_FOLDER");
    if (!folder) folder = "/sys/devices/system/cpu";
    cores_seen(list, sizeof list);
    if (!parse_cores(list, mask)) return;
    for (int policy = 0; policy < MAX_CORES && clusters->count < MAX_CLUSTERS; policy++) {
        char path[512];
        Text cores = {0};
        Message ignored;
        snprintf(path, sizeof path, "%.400s/cpufreq/policy%d/related_cpus", folder, policy);
        if (read_file(path, 1u << 16, &cores, &ignored) && holds_core(cores.bytes, mask))
            snprintf(clusters->paths[clusters->count++], sizeof path, "%.400s/cpufreq/policy%d/stats/time_in_state",
                     folder, policy);
        text_free(&cores);
    }
    /* Of several clusters some rest, and which of them worked is not known. */
    if (!is_pinned && clusters->count > 1) clusters->count = 0;
}

/* Lines of a clock in kHz and the ticks at it. */
static bool add_cluster(const char *text, ClockTimes *times) {
    double highest = 0, top = 0;
    while (*text) {
        char *end;
        double khz = strtod(text, &end);
        if (end == text) break;
        double ms = TICK_MS * strtod(end, (char **)&text);
        if (text == end || !(khz > 0) || !(ms >= 0)) return false;
        times->ms += ms;
        times->mhz_ms += ms * khz / 1e3;
        if (khz > highest) highest = khz, top = ms;
        while (*text == '\n' || *text == ' ') text++;
    }
    times->top_ms += top;
    return highest > 0;
}

bool clock_times(ClockTimes *times) {
    static Clusters clusters;
    static bool is_known;
    if (!is_known) find_clusters(&clusters);
    is_known = true;
    memset(times, 0, sizeof *times);
    for (int i = 0; i < clusters.count; i++) {
        Text content = {0};
        Message ignored;
        bool good = read_file(clusters.paths[i], 1u << 16, &content, &ignored) && add_cluster(content.bytes, times);
        text_free(&content);
        if (!good) return false;
    }
    return clusters.count > 0;
}

long switches(void) {
    struct rusage usage; /* musl's is longer than bionic's, and begins as it does */
    return getrusage(RUSAGE_SELF, &usage) == 0 ? usage.ru_nivcsw : -1;
}

bool is_readable(const char *path) {
    char byte;
    int file = open(path, O_RDONLY);
    if (file < 0) return false;
    bool readable = read(file, &byte, 1) >= 0; /* a folder opens, but does not read */
    close(file);
    return readable;
}

bool read_file(const char *path, size_t limit, Text *content, Message *why) {
    int file = open(path, O_RDONLY);
    if (file < 0) return fail(why, "%.400s cannot be opened", path);
    char block[4096];
    for (;;) {
        ssize_t count = read(file, block, sizeof block);
        if (count < 0 || content->length + (size_t)count > limit) {
            close(file);
            return fail(why, count < 0 ? "%.400s cannot be read" : "%.400s is too large", path);
        }
        if (count == 0) break;
        char *bytes = content->bytes;
        if (content->length + (size_t)count + 1 > content->capacity) {
            content->capacity = (content->length + sizeof block + 1) * 2;
            bytes = realloc(content->bytes, content->capacity);
            if (!bytes) return close(file), fail(why, "out of memory");
        }
        content->bytes = bytes;
        memcpy(bytes + content->length, block, (size_t)count);
        content->length += (size_t)count;
        bytes[content->length] = 0;
    }
    close(file);
    return content->bytes != NULL || fail(why, "%.400s is empty", path);
}

bool find_symbols(void *library, const Symbol *symbols, size_t count, Message *why) {
    for (size_t i = 0; i < count; i++) {
        void *address = dlsym(library, symbols[i].name);
        if (!address && !symbols[i].optional) return fail(why, "the library does not export %s", symbols[i].name);
        memcpy(symbols[i].function, &address, sizeof address); /* ISO C has no cast from data to function pointers */
    }
    return true;
}
