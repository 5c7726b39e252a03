/* amc-bench MANIFEST [RESULTS]: times the models of a manifest with a runtime that is loaded at run time. README.md
 * describes both files. */
#include "bench.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const Backend *const BACKENDS[] = {&ONNXRUNTIME, &TFLITE, &LITERT};

#define MAX_GRAPH (2u << 20) /* bytes; with a third on top a line stays below what readers take */

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_BAD_MANIFEST = 2 };

static void begin(Text *line, const char *event) {
    text_add(line, "{\"format_version\":%d,\"event\":\"%s\"", FORMAT_VERSION, event);
}

static void add_string(Text *line, const char *key, const char *value) {
    text_add(line, ",\"%s\":", key);
    text_add_json_string(line, value);
}

static void finish(Text *line) {
    text_add(line, "}\n");
    results_line(line);
    text_free(line);
}

static void write_start(const Manifest *manifest, const char *version, const char *delegate) {
    Text line = {0};
    char seen[1024];
    cores_seen(seen, sizeof seen);
    begin(&line, "start");
    add_string(&line, "runner", RUNNER_VERSION);
    text_add(&line, ",\"pid\":%d", (int)getpid());
    add_string(&line, "runtime", manifest->runtime);
    add_string(&line, "runtime_version", version[0] ? version : manifest->runtime_version);
    add_string(&line, "delegate", delegate);
    text_add(&line, ",\"threads\":%d", manifest->threads);
    add_string(&line, "cores_wanted", manifest->cores);
    add_string(&line, "cores_seen", seen);
    finish(&line);
}

static int write_end(const char *status, const char *message, int exit_code) {
    Text line = {0};
    begin(&line, "end");
    text_add(&line, ",\"status\":\"%s\",\"results\":%d,\"errors\":%d", status, progress.results, progress.errors);
    add_string(&line, "message", message);
    finish(&line);
    if (message[0]) log_line("%s", message);
    return exit_code;
}

static void write_result(size_t index, const Entry *entry, const Measured *measured) {
    Text line = {0};
    begin(&line, "result");
    text_add(&line, ",\"index\":%zu", index);
    add_string(&line, "id", entry->id);
    text_add(&line, ",\"load_ms\":%.7g,\"first_ms\":%.7g,\"warmup_runs\":%d,\"runs_per_sample\":%d,\"samples_ms\":[",
             measured->load_ms, measured->first_ms, measured->warmup_runs, measured->runs_per_sample);
    for (int i = 0; i < measured->samples; i++) text_add(&line, "%s%.7g", i ? "," : "", measured->samples_ms[i]);
    text_add(&line, "]");
    if (measured->peak_rss_kb >= 0) text_add(&line, ",\"peak_rss_kb\":%ld", measured->peak_rss_kb);
    if (measured->switches >= 0) text_add(&line, ",\"switches\":%ld", measured->switches);
    const ClockTimes *clock = &measured->clock;
    if (clock->ms > 0)
        text_add(&line, ",\"clock_ms\":%.0f,\"clock_mhz_ms\":%.0f,\"clock_top_ms\":%.0f", clock->ms, clock->mhz_ms,
                 clock->top_ms);
    progress.results++;
    finish(&line);
}

static void write_error(size_t index, const Entry *entry, const char *message) {
    Text line = {0};
    begin(&line, "error");
    text_add(&line, ",\"index\":%zu", index);
    add_string(&line, "id", entry->id);
    add_string(&line, "message", message);
    progress.errors++;
    finish(&line);
}

/* The graph that the runtime made of the model it has just loaded. */
static void write_graph(size_t index, const Entry *entry, const char *path) {
    Text line = {0}, content = {0};
    Message why = {""};
    if (!read_file(path, MAX_GRAPH, &content, &why)) {
        log_line("%s", why.text);
        return;
    }
    begin(&line, "graph");
    text_add(&line, ",\"index\":%zu", index);
    add_string(&line, "id", entry->id);
    text_add(&line, ",\"base64\":\"");
    text_add_base64(&line, content.bytes, content.length);
    text_add(&line, "\"");
    text_free(&content);
    finish(&line);
}

static int measure_all(const Backend *backend, const Manifest *manifest) {
    for (size_t index = 0; index < manifest->count;) {
        const Entry *entry = &manifest->entries[index];
        size_t count = entry->starts_pair ? 2 : 1;
        Measured measured[2] = {0};
        Message why = {""};
        if (is_past_deadline()) return write_end("deadline", "the deadline has passed", EXIT_FAILED);
        watchdog_model(manifest->model_deadline_s * (int)count);
        bool good = entry->starts_pair ? measure_pair(backend, entry, measured, &why)
                                       : measure(backend, entry, measured, &why);
        for (size_t i = 0; i < count; i++) {
            if (good && manifest->graph_path && count == 1) write_graph(index, entry, manifest->graph_path);
            if (good) write_result(index + i, &entry[i], &measured[i]);
            else if (why.text[0]) write_error(index + i, &entry[i], why.text);
            free(measured[i].samples_ms);
        }
        if (!good && !why.text[0]) return write_end("deadline", "the deadline has passed", EXIT_FAILED);
        index += count;
    }
    return write_end("done", "", EXIT_DONE);
}

static int run(const Manifest *manifest) {
    const Backend *backend = NULL;
    Message why = {""};
    for (size_t i = 0; i < sizeof BACKENDS / sizeof *BACKENDS; i++)
        if (!strcmp(BACKENDS[i]->name, manifest->runtime)) backend = BACKENDS[i];
    watchdog_start(manifest->deadline_s);
    /* Before the library: threads that it starts inherit the cores. */
    bool good = !manifest->cores[0] || set_cores(manifest->cores, &why);
    if (good) {
        void *library = dlopen(manifest->library, RTLD_NOW);
        if (!library) {
            const char *reason = dlerror();
            good = fail(&why, "the library cannot be loaded: %.400s", reason ? reason : manifest->library);
        } else {
            good = backend->load(library, manifest, &why);
        }
    }
    write_start(manifest, good ? backend->version() : "", good ? backend->delegate() : "");
    if (!good) return write_end("error", why.text, EXIT_FAILED);
    return measure_all(backend, manifest);
}

int main(int count, char **arguments) {
    Manifest manifest;
    Message why = {""};
    if (count < 2 || count > 3) {
        log_line("usage: amc-bench MANIFEST [RESULTS]");
        return EXIT_BAD_MANIFEST;
    }
    if (!results_open(count == 3 ? arguments[2] : NULL)) {
        log_line("%s cannot be opened", count == 3 ? arguments[2] : "stdout");
        return EXIT_FAILED;
    }
    int code = manifest_read(arguments[1], &manifest, &why) ? run(&manifest)
                                                            : write_end("error", why.text, EXIT_BAD_MANIFEST);
    _exit(code); /* without the runtimes' static destructors: some wait for threads that are gone */
}
