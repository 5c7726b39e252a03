/* What every part of the runner shares: the manifest's data, the back ends' interface, the small services.
 *
 * The executable must run under Android's libc although it may be built without the NDK, against another libc's
 * declarations. So only functions whose ABI is the same in both are called: no errno, no stat, no stdio streams, no
 * threads, no thread-local data, no struct sigaction. */
#ifndef AMC_BENCH_H
#define AMC_BENCH_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* sched_setaffinity */
#endif

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RUNNER_VERSION "1"
#define FORMAT_VERSION 1 /* 1: manifest keys and result lines as in README.md */
#define MAX_ID 80
#define MAX_TENSORS 512
#define MAX_RANK 16

typedef struct {
    char text[512];
} Message;

/* Fills the message as printf does, and returns false, so that a failure is one statement. */
bool fail(Message *message, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- text.c: text that grows */
typedef struct {
    char *bytes;
    size_t length, capacity;
} Text;

void text_add(Text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
void text_add_json_string(Text *text, const char *value);
void text_add_base64(Text *text, const char *bytes, size_t length);
void text_free(Text *text);

/* ---- manifest.c */
typedef struct {
    int warmup_runs, samples, min_samples;
    double min_sample_ms, max_s, period_ms;
    double warmup_s; /* of the manifest's first entry; 0 of the others */
} Timing;

typedef struct {
    char id[MAX_ID + 1];
    char *path;
    Timing timing;
    bool starts_pair; /* this entry and the next are timed together */
} Entry;

typedef struct {
    char runtime[16], runtime_version[32], delegate[16], cores[256];
    char *library, *graph_path; /* graph_path: NULL where the graphs are not asked for */
    int threads, deadline_s, model_deadline_s; /* the last: 0 for none */
    double warmup_s;
    Entry *entries;
    size_t count, capacity;
} Manifest;

bool manifest_read(const char *path, Manifest *manifest, Message *why);

/* ---- system.c: the clock, cores, memory, files, the watchdog */
double now_ms(void); /* monotonic */
void sleep_until(double until_ms);
bool set_cores(const char *list, Message *why);
void cores_seen(char *list, size_t size); /* Cpus_allowed_list of this process; "" where it cannot be read */
void reset_peak_memory(void);
long peak_memory_kb(void); /* since the last reset; -1 where the kernel does not tell */
long memory_kb(void); /* now; -1 likewise */

typedef struct {
    double ms, mhz_ms, top_ms; /* in all; times the clock in MHz; at the highest clock: summed over clusters of cores */
} ClockTimes;

/* What the clusters that this process may run on have done since the system started, or at their last reset. Counted
 * in hundredths of a second. False where the kernel does not tell, or a process that was given no cores has several. */
bool clock_times(ClockTimes *times);
long switches(void); /* involuntary context switches of all threads so far; -1 where the kernel does not tell */
bool read_file(const char *path, size_t limit, Text *content, Message *why);
bool is_readable(const char *path);
void log_line(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- watchdog.c: ends the process when a runtime hangs or crashes */
void watchdog_start(int deadline_s);
void watchdog_model(int limit_s); /* the next model has so long, and what is left of the deadline; 0: only that */
bool is_past_deadline(void);

/* ---- results.c: JSON lines */
typedef struct {
    int results, errors;
    const char *current_id; /* "" between models */
} Progress;

extern volatile Progress progress; /* read by the watchdog's signal handler */

bool results_open(const char *path);
void results_line(const Text *line);
void results_raw(const char *bytes, size_t length); /* safe in a signal handler */

/* ---- inputs.c */
typedef enum {
    TYPE_UNSUPPORTED,
    TYPE_F16,
    TYPE_BF16,
    TYPE_F32,
    TYPE_F64,
    TYPE_BOOL,
    TYPE_INT8,
    TYPE_INT16,
    TYPE_INT32,
    TYPE_INT64
} ElementType; /* unsigned integers count as their signed namesakes: only 0 to 99 is written */

size_t element_size(ElementType type);
ElementType tflite_element_type(int type); /* of a TfLiteType; LiteRT uses the same numbers */
void fill_input(void *data, size_t count, ElementType type);

/* ---- the runtimes */
typedef struct {
    const char *name;
    bool (*load)(void *library, const Manifest *manifest, Message *why);
    const char *(*version)(void); /* as the library tells, or "" */
    const char *(*delegate)(void);
    void *(*open)(const char *path, Message *why); /* loads and prepares; inputs filled; NULL on failure */
    bool (*run)(void *session, Message *why);      /* one inference */
    void (*close)(void *session);
} Backend;

extern const Backend ONNXRUNTIME, TFLITE, LITERT;

typedef void (*Function)(void);

typedef struct {
    const char *name;
    Function *function;
    bool optional; /* left NULL where the library does not export it */
} Symbol;

/* Looks all of them up. Names the first that is missing. */
bool find_symbols(void *library, const Symbol *symbols, size_t count, Message *why);

/* ---- timing.c */
typedef struct {
    double load_ms, first_ms;
    double *samples_ms;
    int samples, warmup_runs, runs_per_sample;
    long peak_rss_kb;
    long switches; /* involuntary, while samples were taken; -1: unknown */
    ClockTimes clock; /* from before loading to the last sample; ms 0: unknown */
} Measured;

/* One pass: a fresh session. False with an empty message: the deadline has passed. */
bool measure(const Backend *backend, const Entry *entry, Measured *measured, Message *why);
/* Two sessions open together, timed in blocks A B B A. */
bool measure_pair(const Backend *backend, const Entry entries[2], Measured measured[2], Message *why);

#endif
