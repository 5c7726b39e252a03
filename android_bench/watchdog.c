/* A runtime that hangs or crashes must not leave the host waiting: the process ends itself and says so. */
#include "bench.h"

#include <signal.h>
#include <string.h>
#include <unistd.h>

static double deadline_ms;

/* Text built without the C library's formatting, which a signal handler may not call. */
typedef struct {
    char bytes[512];
    size_t length;
} Line;

static void add(Line *line, const char *text) {
    while (*text && line->length < sizeof line->bytes - 1) line->bytes[line->length++] = *text++;
}

static void add_number(Line *line, int number) {
    char digits[16];
    int count = 0;
    do digits[count++] = (char)('0' + number % 10);
    while ((number /= 10) && count < 15);
    while (count) {
        char digit[2] = {digits[--count], 0};
        add(line, digit);
    }
}

static void on_signal(int number) {
    Line line = {.length = 0};
    add(&line, "{\"format_version\":1,\"event\":\"end\",\"status\":\"");
    add(&line, number == SIGALRM ? "deadline" : "error");
    add(&line, "\",\"results\":");
    add_number(&line, progress.results);
    add(&line, ",\"errors\":");
    add_number(&line, progress.errors);
    add(&line, number == SIGALRM ? ",\"message\":\"stopped by the watchdog" : ",\"message\":\"killed by signal ");
    if (number != SIGALRM) add_number(&line, number);
    add(&line, progress.current_id[0] ? " in " : "");
    add(&line, progress.current_id); /* identifiers need no escaping */
    add(&line, "\"}\n");
    results_raw(line.bytes, line.length);
    _exit(1);
}

void watchdog_start(int deadline_s) {
    static const int fatal[] = {SIGSEGV, SIGBUS, SIGABRT, SIGILL, SIGFPE};
    deadline_ms = now_ms() + deadline_s * 1e3;
    for (size_t i = 0; i < sizeof fatal / sizeof *fatal; i++) signal(fatal[i], on_signal);
    signal(SIGALRM, on_signal);
    signal(SIGHUP, SIG_IGN); /* a pulled cable closes the shell; the run goes on */
    /* The loops look at the deadline themselves; the alarm is for calls that do not come back. */
    alarm((unsigned)deadline_s + 1);
}

void watchdog_model(int limit_s) {
    int left_s = (int)((deadline_ms - now_ms()) / 1e3) + 2; /* a second late, as above */
    if (left_s < 1) left_s = 1;
    alarm((unsigned)(limit_s > 0 && limit_s < left_s ? limit_s : left_s));
}

bool is_past_deadline(void) { return now_ms() >= deadline_ms; }
