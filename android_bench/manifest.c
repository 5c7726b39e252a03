/* Reading the manifest: `key value` lines, all checked before anything is measured. */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_MANIFEST (16u << 20)
#define MAX_ENTRIES 100000

typedef struct {
    Manifest *manifest;
    Timing timing;    /* of the models that follow */
    char folder[4096]; /* of the manifest, with a slash, or "" */
    char seen[512];   /* global keys so far, each between spaces */
} Reader;

static bool parse_int(const char *value, int lowest, int highest, int *number) {
    long long parsed = 0;
    if (!*value) return false;
    for (const char *at = value; *at; at++) {
        if (*at < '0' || *at > '9' || parsed > highest) return false;
        parsed = parsed * 10 + (*at - '0');
    }
    if (parsed < lowest || parsed > highest) return false;
    *number = (int)parsed;
    return true;
}

static bool parse_number(const char *value, double highest, double *number) {
    if (!*value || strspn(value, "0123456789.") != strlen(value)) return false;
    char *end = NULL;
    double parsed = strtod(value, &end);
    if (*end || !(parsed >= 0 && parsed <= highest)) return false;
    *number = parsed;
    return true;
}

static bool copy_word(const char *value, char *target, size_t size) {
    size_t length = strlen(value);
    if (length == 0 || length >= size) return false;
    memcpy(target, value, length + 1);
    return true;
}

static char *resolve(const Reader *reader, const char *path) {
    const char *folder = path[0] == '/' ? "" : reader->folder;
    size_t size = strlen(folder) + strlen(path) + 1;
    char *whole = malloc(size);
    if (whole) snprintf(whole, size, "%s%s", folder, path);
    return whole;
}

static bool is_id(const char *id) {
    static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    size_t length = strlen(id);
    return length >= 1 && length <= MAX_ID && strspn(id, allowed) == length;
}

static bool add_entry(Reader *reader, const char *id, const char *path, bool starts_pair, Message *why) {
    Manifest *manifest = reader->manifest;
    if (!is_id(id)) return fail(why, "%.100s is not an identifier of 1 to %d of A-Z a-z 0-9 . _ -", id, MAX_ID);
    if (!*path) return fail(why, "%s has no path", id);
    if (manifest->count >= MAX_ENTRIES) return fail(why, "more than %d models", MAX_ENTRIES);
    if (manifest->count == manifest->capacity) {
        size_t capacity = manifest->capacity ? manifest->capacity * 2 : 64;
        Entry *entries = realloc(manifest->entries, capacity * sizeof *entries);
        if (!entries) return fail(why, "out of memory");
        manifest->entries = entries;
        manifest->capacity = capacity;
    }
    Entry *entry = &manifest->entries[manifest->count];
    snprintf(entry->id, sizeof entry->id, "%s", id);
    entry->path = resolve(reader, path);
    entry->timing = reader->timing;
    entry->starts_pair = starts_pair;
    if (!entry->path) return fail(why, "out of memory");
    manifest->count++;
    return true;
}

static bool add_model(Reader *reader, char *value, Message *why) {
    char *space = strchr(value, ' ');
    if (!space) return fail(why, "model needs an identifier and a path");
    *space = 0;
    return add_entry(reader, value, space + 1, false, why);
}

static bool add_pair(Reader *reader, char *value, Message *why) {
    char *fields[4] = {value};
    for (int i = 1; i < 4; i++) {
        char *tab = strchr(fields[i - 1], '\t');
        if (!tab) return fail(why, "pair needs two identifiers and two paths, separated by tabs");
        *tab = 0;
        fields[i] = tab + 1;
    }
    return add_entry(reader, fields[0], fields[1], true, why) && add_entry(reader, fields[2], fields[3], false, why);
}

/* True when the key sets the timing of the models that follow; `good` tells whether its value is allowed. */
static bool set_timing(Timing *timing, const char *key, const char *value, bool *good) {
    if (!strcmp(key, "warmup_runs")) *good = parse_int(value, 0, 1000000, &timing->warmup_runs);
    else if (!strcmp(key, "samples")) *good = parse_int(value, 1, 100000, &timing->samples);
    else if (!strcmp(key, "min_samples")) *good = parse_int(value, 1, 100000, &timing->min_samples);
    else if (!strcmp(key, "min_sample_ms")) *good = parse_number(value, 1e6, &timing->min_sample_ms);
    else if (!strcmp(key, "max_s")) *good = parse_number(value, 1e6, &timing->max_s);
    else if (!strcmp(key, "period_ms")) *good = parse_number(value, 1e4, &timing->period_ms);
    else return false;
    return true;
}

static bool set_global(Reader *reader, const char *key, const char *value, bool *good) {
    Manifest *manifest = reader->manifest;
    if (!strcmp(key, "runtime")) *good = copy_word(value, manifest->runtime, sizeof manifest->runtime);
    else if (!strcmp(key, "runtime_version"))
        *good = copy_word(value, manifest->runtime_version, sizeof manifest->runtime_version);
    else if (!strcmp(key, "delegate")) *good = copy_word(value, manifest->delegate, sizeof manifest->delegate);
    else if (!strcmp(key, "cores")) *good = copy_word(value, manifest->cores, sizeof manifest->cores);
    else if (!strcmp(key, "threads")) *good = parse_int(value, 1, 256, &manifest->threads);
    else if (!strcmp(key, "deadline_s")) *good = parse_int(value, 1, 1000000, &manifest->deadline_s);
    else if (!strcmp(key, "model_deadline_s")) *good = parse_int(value, 1, 1000000, &manifest->model_deadline_s);
    else if (!strcmp(key, "warmup_s")) *good = parse_number(value, 60, &manifest->warmup_s);
    else if (!strcmp(key, "library")) *good = *value && (manifest->library = resolve(reader, value)) != NULL;
    else if (!strcmp(key, "graph_path")) *good = *value && (manifest->graph_path = resolve(reader, value)) != NULL;
    else return false;
    return true;
}

static bool read_line(Reader *reader, char *line, Message *why) {
    char *space = strchr(line, ' ');
    if (!space) return fail(why, "\"%.60s\" is not a key, one space and a value", line);
    *space = 0;
    char *key = line, *value = space + 1;
    if (!strcmp(key, "model")) return add_model(reader, value, why);
    if (!strcmp(key, "pair")) return add_pair(reader, value, why);
    bool good = false;
    if (set_timing(&reader->timing, key, value, &good)) return good || fail(why, "%s %.100s is not allowed", key, value);
    if (!set_global(reader, key, value, &good)) return fail(why, "unknown key %.60s", key);
    char word[64];
    snprintf(word, sizeof word, " %s ", key);
    if (reader->manifest->count) return fail(why, "%s has to stand before the first model", key);
    if (strstr(reader->seen, word)) return fail(why, "%s is given twice", key);
    snprintf(reader->seen + strlen(reader->seen), sizeof reader->seen - strlen(reader->seen), "%s", word);
    return good || fail(why, "%s %.100s is not allowed", key, value);
}

static bool is_complete(Manifest *manifest, Message *why) {
    bool tflite = !strcmp(manifest->runtime, "tflite"), litert = !strcmp(manifest->runtime, "litert");
    if (!tflite && !litert && strcmp(manifest->runtime, "onnxruntime"))
        return fail(why, "runtime \"%s\" is not tflite, litert or onnxruntime", manifest->runtime);
    if (!manifest->library) return fail(why, "no library");
    if (!manifest->threads) return fail(why, "no threads");
    if (!manifest->deadline_s) return fail(why, "no deadline_s");
    if (manifest->graph_path && (tflite || litert)) return fail(why, "only onnxruntime writes the graphs it made");
    if (litert && !manifest->runtime_version[0]) return fail(why, "litert needs its runtime_version");
    if (manifest->delegate[0] && !tflite) return fail(why, "only tflite takes a delegate");
    if (!manifest->delegate[0] && tflite) snprintf(manifest->delegate, sizeof manifest->delegate, "xnnpack");
    if (tflite && strcmp(manifest->delegate, "xnnpack") && strcmp(manifest->delegate, "none"))
        return fail(why, "delegate %s is not xnnpack or none", manifest->delegate);
    if (!manifest->count) return fail(why, "no model");
    return true;
}

bool manifest_read(const char *path, Manifest *manifest, Message *why) {
    Text content = {0};
    Reader reader = {.manifest = manifest, .timing = {.warmup_runs = 4, .samples = 20, .min_samples = 4}};
    const char *slash = strrchr(path, '/');
    size_t folder = slash ? (size_t)(slash - path) + 1 : 0;
    memset(manifest, 0, sizeof *manifest);
    if (folder >= sizeof reader.folder) return fail(why, "the manifest's path is too long");
    memcpy(reader.folder, path, folder);
    if (!read_file(path, MAX_MANIFEST, &content, why)) return false;
    if (strlen(content.bytes) != content.length) return fail(why, "the manifest holds a zero byte");
    int number = 0;
    for (char *line = content.bytes; *line;) {
        char *end = strchr(line, '\n');
        if (end) *end = 0;
        Message inner = {""};
        if (++number == 1) {
            if (strcmp(line, "amc_bench_manifest 1")) return fail(why, "line 1 is not \"amc_bench_manifest 1\"");
        } else if (!read_line(&reader, line, &inner)) {
            return fail(why, "line %d: %s", number, inner.text);
        }
        if (!end) break;
        line = end + 1;
    }
    if (number == 0) return fail(why, "the manifest is empty");
    text_free(&content);
    if (manifest->count) manifest->entries[0].timing.warmup_s = manifest->warmup_s;
    return is_complete(manifest, why);
}
