/* One pass: load, first inference, warm-up, samples. The rules are those of the package's own timing of a session. */
#include "bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_RUNS_PER_SAMPLE 1000000
#define GAIN 0.02 /* a run that is shorter by less than this is as long as before */

typedef struct {
    const Backend *backend;
    void *session;
    const char *id;
} Running;

static bool open_session(const Backend *backend, const Entry *entry, Running *running, Measured *measured,
                         Message *why) {
    progress.current_id = running->id = entry->id;
    running->backend = backend;
    if (!is_readable(entry->path)) return fail(why, "%.400s cannot be read", entry->path);
    double start = now_ms();
    running->session = backend->open(entry->path, why);
    if (!running->session) return false;
    measured->load_ms = now_ms() - start;
    start = now_ms();
    if (!backend->run(running->session, why)) return false;
    measured->first_ms = now_ms() - start;
    return true;
}

/* What the clocks did since `before`, which is unknown where it has no time. */
static ClockTimes clock_since(ClockTimes before) {
    ClockTimes now, none = {0};
    if (before.ms <= 0 || !clock_times(&now) || now.ms < before.ms) return none;
    return (ClockTimes){now.ms - before.ms, now.mhz_ms - before.mhz_ms, now.top_ms - before.top_ms};
}

static void close_session(Running *running) {
    if (running->session) running->backend->close(running->session);
    running->session = NULL;
    progress.current_id = "";
}

static int runs_for(double min_sample_ms, double shortest_ms) {
    double runs = min_sample_ms / (shortest_ms > 1e-4 ? shortest_ms : 1e-4);
    if (runs >= MAX_RUNS_PER_SAMPLE) return MAX_RUNS_PER_SAMPLE;
    int whole = (int)runs;
    return whole < runs ? whole + 1 : whole > 1 ? whole : 1;
}

/* Where runs have a period: sleeps until the next one is due. One that is late starts at once, and the next a period
 * after it. */
static void wait_for_start(double period_ms, double *due_ms) {
    if (period_ms <= 0) return;
    double now = now_ms();
    bool is_late = now >= *due_ms;
    if (!is_late) sleep_until(*due_ms);
    *due_ms = (is_late ? now : *due_ms) + period_ms;
}

/* Adds a block of samples, after its own warm-up. False: `why`, or nothing where the deadline has passed. */
static bool time_block(const Running *running, const Timing *timing, Measured *measured, Message *why) {
    bool (*run)(void *, Message *) = running->backend->run;
    void *session = running->session;
    double shortest = HUGE_VAL, began = now_ms(), due = 0;
    progress.current_id = running->id;
    for (int done = 1, as_before = 0; timing->warmup_runs > 0; done++, as_before++) {
        wait_for_start(timing->period_ms, &due);
        double start = now_ms();
        if (is_past_deadline() || !run(session, why)) return false;
        double end = now_ms();
        if (end - start < shortest * (1 - GAIN)) as_before = 0;
        if (end - start < shortest) shortest = end - start;
        measured->warmup_runs++;
        if (end - began < timing->warmup_s * 1e3) continue;
        bool is_steady = timing->period_ms > 0 || as_before >= timing->warmup_runs - 1;
        if (done >= timing->warmup_runs && is_steady) break;
        if (timing->max_s > 0 && done > 1 && end - began > timing->max_s * 500) break;
    }
    if (timing->warmup_runs == 0) shortest = measured->first_ms;
    /* The shortest warm-up run decides: one that was interrupted would make the samples too short to time. */
    int runs = timing->period_ms > 0 ? 1 : runs_for(timing->min_sample_ms, shortest);
    measured->runs_per_sample = runs;
    long before = switches();
    began = now_ms();
    for (int taken = 0; taken < timing->samples;) {
        wait_for_start(timing->period_ms, &due);
        double start = now_ms();
        for (int i = 0; i < runs; i++)
            if (!run(session, why)) return false;
        double end = now_ms();
        double sample_ms = (end - start) / runs;
        measured->samples_ms[measured->samples++] = sample_ms > 1e-6 ? sample_ms : 1e-6; /* the clock's resolution */
        taken++;
        if (is_past_deadline() && taken < timing->samples) return false;
        if (timing->max_s > 0 && end - began > timing->max_s * 1e3 && taken >= timing->min_samples) break;
    }
    if (before < 0) measured->switches = -1;
    else measured->switches += switches() - before;
    return true;
}

static bool prepare(Measured *measured, size_t samples, Message *why) {
    memset(measured, 0, sizeof *measured);
    measured->samples_ms = malloc(samples * sizeof *measured->samples_ms);
    return measured->samples_ms || fail(why, "out of memory");
}

bool measure(const Backend *backend, const Entry *entry, Measured *measured, Message *why) {
    Running running = {0};
    ClockTimes before;
    if (!clock_times(&before)) before.ms = 0;
    reset_peak_memory();
    bool good = prepare(measured, (size_t)entry->timing.samples, why) &&
                open_session(backend, entry, &running, measured, why) &&
                time_block(&running, &entry->timing, measured, why);
    measured->peak_rss_kb = peak_memory_kb();
    measured->clock = clock_since(before);
    close_session(&running);
    return good;
}

bool measure_pair(const Backend *backend, const Entry entries[2], Measured measured[2], Message *why) {
    static const int order[] = {0, 1, 1, 0};
    Running running[2] = {0};
    Timing half = entries[0].timing;
    half.samples = (half.samples + 1) / 2;
    half.min_samples = (half.min_samples + 1) / 2;
    half.max_s /= 2;
    bool good = true;
    ClockTimes before;
    if (!clock_times(&before)) before.ms = 0;
    long alone_kb = memory_kb();
    for (int i = 0; i < 2; i++) good = prepare(&measured[i], 2 * (size_t)half.samples, why) && good;
    for (int i = 0; i < 2 && good; i++) {
        Message inner = {""};
        reset_peak_memory();
        long others_kb = memory_kb() - alone_kb; /* what the first model holds is not the second one's */
        good = open_session(backend, &entries[i], &running[i], &measured[i], &inner);
        if (!good) fail(why, "%s: %.400s", entries[i].id, inner.text);
        measured[i].peak_rss_kb = peak_memory_kb() - others_kb;
    }
    for (int i = 0; i < 4 && good; i++) {
        good = time_block(&running[order[i]], &half, &measured[order[i]], why);
        half.warmup_s = 0;
    }
    for (int i = 0; i < 2; i++) {
        measured[i].clock = clock_since(before);
        close_session(&running[i]);
    }
    return good;
}
