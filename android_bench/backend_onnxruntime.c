/* ONNX Runtime through its C API.
 *
 * OrtApi is a table of function pointers whose order never changes: new functions are added at its end. So a slot's
 * number is its identity, and the few that are needed are named here by number. */
#include "bench.h"

#include <stdlib.h>
#include <string.h>

#define API_VERSION 11 /* the oldest that has every slot below; libraries refuse only versions newer than their own */

typedef struct OrtStatus OrtStatus; /* NULL: success */
typedef OrtStatus *(*Slot)(void);

typedef struct {
    const Slot *(*get_api)(uint32_t version);
    const char *(*get_version)(void);
} ApiBase;

enum {
    GET_ERROR_MESSAGE = 2,
    CREATE_ENV = 3,
    CREATE_SESSION = 7,
    CREATE_SESSION_OPTIONS = 10,
    SET_OPTIMIZED_MODEL_PATH = 11,
    SET_LOG_SEVERITY = 22,
    SET_GRAPH_OPTIMIZATION = 23,
    SET_INTRA_OP_THREADS = 24,
    SET_INTER_OP_THREADS = 25,
    GET_INPUT_COUNT = 30,
    GET_OUTPUT_COUNT = 31,
    GET_INPUT_TYPE = 33,
    GET_OUTPUT_TYPE = 34,
    GET_INPUT_NAME = 36,
    GET_OUTPUT_NAME = 37,
    CREATE_TENSOR = 48,
    GET_TENSOR_DATA = 51,
    CAST_TO_TENSOR_INFO = 55,
    GET_ELEMENT_TYPE = 60,
    GET_DIMENSIONS_COUNT = 61,
    GET_DIMENSIONS = 62,
    CREATE_CPU_MEMORY_INFO = 69,
    ALLOCATOR_FREE = 76,
    GET_DEFAULT_ALLOCATOR = 78,
    RELEASE_STATUS = 93,
    RELEASE_SESSION = 95,
    RELEASE_VALUE = 96,
    RELEASE_TYPE_INFO = 98,
    RELEASE_SESSION_OPTIONS = 100,
    ADD_CONFIG_ENTRY = 130,
    RUN_WITH_BINDING = 133,
    CREATE_BINDING = 134,
    RELEASE_BINDING = 135,
    BIND_INPUT = 136,
    BIND_OUTPUT = 137,
    BIND_OUTPUT_TO_DEVICE = 138
};

enum { LOG_ERROR = 3, OPTIMIZE_ALL = 99, ARENA_ALLOCATOR = 1, MEMORY_DEFAULT = 0 };

static struct {
    const Slot *slots;
    const char *version;
    void *env, *options, *allocator, *memory;
} ort;

typedef struct {
    void *session, *binding;
    void *values[2 * MAX_TENSORS];
    size_t value_count;
} Session;

typedef OrtStatus *(*OneArgument)(void *);
typedef OrtStatus *(*TwoArguments)(void *, void *);
typedef OrtStatus *(*SetNumber)(void *, int);
typedef OrtStatus *(*GetAt)(const void *, size_t, void **);
typedef OrtStatus *(*GetNameAt)(const void *, size_t, void *, char **);
typedef OrtStatus *(*GetSize)(const void *, size_t *);
typedef OrtStatus *(*Bind)(void *, const char *, const void *);
typedef void (*Release)(void *);

#define CALL(slot, type) ((type)(Function)ort.slots[slot])

static void release(int slot, void *object) {
    if (object) ((Release)(Function)ort.slots[slot])(object);
}

/* True for success. Otherwise the message says what failed, and the status is freed. */
static bool ok(OrtStatus *status, const char *what, Message *why) {
    if (!status) return true;
    const char *(*message)(const OrtStatus *) = (const char *(*)(const OrtStatus *))(Function)ort.slots[GET_ERROR_MESSAGE];
    fail(why, "ONNX Runtime, %s: %.400s", what, message(status));
    release(RELEASE_STATUS, status);
    return false;
}

static bool create_options(int threads, const char *graph_path, Message *why) {
    typedef OrtStatus *(*AddEntry)(void *, const char *, const char *);
    typedef OrtStatus *(*SetPath)(void *, const char *);
    if (!ok(CALL(CREATE_SESSION_OPTIONS, OneArgument)(&ort.options), "session options", why) ||
        !ok(CALL(SET_LOG_SEVERITY, SetNumber)(ort.options, LOG_ERROR), "log level", why) ||
        !ok(CALL(SET_GRAPH_OPTIMIZATION, SetNumber)(ort.options, OPTIMIZE_ALL), "graph optimization", why) ||
        !ok(CALL(SET_INTRA_OP_THREADS, SetNumber)(ort.options, threads), "threads", why) ||
        !ok(CALL(SET_INTER_OP_THREADS, SetNumber)(ort.options, 1), "threads", why))
        return false;
    if (graph_path && !ok(CALL(SET_OPTIMIZED_MODEL_PATH, SetPath)(ort.options, graph_path), "graph_path", why)) return false;
    return threads > 1 || ok(CALL(ADD_CONFIG_ENTRY, AddEntry)(ort.options, "session.intra_op.allow_spinning", "0"),
                             "session options", why);
}

static bool load(void *library, const Manifest *manifest, Message *why) {
    typedef OrtStatus *(*CreateEnv)(int, const char *, void **);
    typedef OrtStatus *(*CreateMemoryInfo)(int, int, void **);
    const ApiBase *(*get_base)(void) = NULL;
    const Symbol symbols[] = {{"OrtGetApiBase", (Function *)&get_base, false}};
    if (!find_symbols(library, symbols, 1, why)) return false;
    const ApiBase *base = get_base();
    ort.version = base->get_version();
    ort.slots = base->get_api(API_VERSION);
    if (!ort.slots) return fail(why, "ONNX Runtime %s is too old", ort.version);
    return ok(CALL(CREATE_ENV, CreateEnv)(LOG_ERROR, "amc-bench", &ort.env), "environment", why) &&
           ok(CALL(GET_DEFAULT_ALLOCATOR, OneArgument)(&ort.allocator), "allocator", why) &&
           ok(CALL(CREATE_CPU_MEMORY_INFO, CreateMemoryInfo)(ARENA_ALLOCATOR, MEMORY_DEFAULT, &ort.memory), "memory",
              why) &&
           create_options(manifest->threads, manifest->graph_path, why);
}

static const char *version(void) { return ort.version; }
static const char *delegate(void) { return "CPUExecutionProvider"; }

static ElementType element_type(int type) { /* ONNXTensorElementDataType */
    switch (type) {
    case 1: return TYPE_F32;
    case 2:
    case 3: return TYPE_INT8;
    case 4:
    case 5: return TYPE_INT16;
    case 6:
    case 12: return TYPE_INT32;
    case 7:
    case 13: return TYPE_INT64;
    case 9: return TYPE_BOOL;
    case 10: return TYPE_F16;
    case 11: return TYPE_F64;
    case 16: return TYPE_BF16;
    default: return TYPE_UNSUPPORTED;
    }
}

typedef struct {
    int type;
    int64_t sizes[MAX_RANK];
    size_t rank, count; /* count: elements, a free size taken as 1 */
    bool is_fixed;
} Shape;

static bool read_shape(void *type_info, Shape *shape, Message *why) {
    typedef OrtStatus *(*GetType)(const void *, int *);
    typedef OrtStatus *(*GetSizes)(const void *, int64_t *, size_t);
    void *tensor = NULL;
    if (!ok(CALL(CAST_TO_TENSOR_INFO, TwoArguments)(type_info, &tensor), "tensor type", why)) return false;
    if (!tensor) return fail(why, "an input or output is not a tensor");
    if (!ok(CALL(GET_ELEMENT_TYPE, GetType)(tensor, &shape->type), "element type", why) ||
        !ok(CALL(GET_DIMENSIONS_COUNT, GetSize)(tensor, &shape->rank), "rank", why))
        return false;
    if (shape->rank > MAX_RANK) return fail(why, "a tensor has more than %d dimensions", MAX_RANK);
    if (!ok(CALL(GET_DIMENSIONS, GetSizes)(tensor, shape->sizes, shape->rank), "shape", why)) return false;
    shape->is_fixed = true;
    shape->count = 1;
    for (size_t i = 0; i < shape->rank; i++) {
        if (shape->sizes[i] < 0) shape->is_fixed = false, shape->sizes[i] = 1;
        shape->count *= (size_t)shape->sizes[i];
    }
    return true;
}

/* Makes a tensor for one input or output and binds it, inputs filled. */
static bool bind(Session *session, const char *name, const Shape *shape, bool is_input, Message *why) {
    typedef OrtStatus *(*CreateTensor)(void *, const int64_t *, size_t, int, void **);
    if (!is_input && !shape->is_fixed)
        return ok(CALL(BIND_OUTPUT_TO_DEVICE, Bind)(session->binding, name, ort.memory), "output", why);
    ElementType type = element_type(shape->type);
    if (type == TYPE_UNSUPPORTED) return fail(why, "tensor %.100s has type %d, which cannot be filled", name, shape->type);
    void **value = &session->values[session->value_count], *data = NULL;
    if (!ok(CALL(CREATE_TENSOR, CreateTensor)(ort.allocator, shape->sizes, shape->rank, shape->type, value), "tensor",
            why))
        return false;
    session->value_count++;
    if (!ok(CALL(GET_TENSOR_DATA, TwoArguments)(*value, &data), "tensor", why)) return false;
    if (is_input) fill_input(data, shape->count, type);
    else memset(data, 0, shape->count * element_size(type));
    return ok(CALL(is_input ? BIND_INPUT : BIND_OUTPUT, Bind)(session->binding, name, *value), "binding", why);
}

static bool bind_all(Session *session, bool is_input, Message *why) {
    size_t count = 0;
    int get_count = is_input ? GET_INPUT_COUNT : GET_OUTPUT_COUNT;
    if (!ok(CALL(get_count, GetSize)(session->session, &count), "inputs and outputs", why)) return false;
    if (count > MAX_TENSORS) return fail(why, "more than %d inputs or outputs", MAX_TENSORS);
    for (size_t i = 0; i < count; i++) {
        void *type_info = NULL;
        char *name = NULL;
        Shape shape = {0};
        int get_type = is_input ? GET_INPUT_TYPE : GET_OUTPUT_TYPE, get_name = is_input ? GET_INPUT_NAME : GET_OUTPUT_NAME;
        bool good = ok(CALL(get_type, GetAt)(session->session, i, &type_info), "type", why) &&
                    ok(CALL(get_name, GetNameAt)(session->session, i, ort.allocator, &name), "name", why) &&
                    read_shape(type_info, &shape, why) && bind(session, name, &shape, is_input, why);
        release(RELEASE_TYPE_INFO, type_info);
        Message ignored;
        if (name) ok(CALL(ALLOCATOR_FREE, TwoArguments)(ort.allocator, name), "name", &ignored);
        if (!good) return false;
    }
    return true;
}

static void close_session(void *opaque) {
    Session *session = opaque;
    release(RELEASE_BINDING, session->binding);
    for (size_t i = 0; i < session->value_count; i++) release(RELEASE_VALUE, session->values[i]);
    release(RELEASE_SESSION, session->session);
    free(session);
}

static void *open_session(const char *path, Message *why) {
    typedef OrtStatus *(*CreateSession)(void *, const char *, void *, void **);
    Session *session = calloc(1, sizeof *session);
    if (!session) return fail(why, "out of memory"), NULL;
    if (ok(CALL(CREATE_SESSION, CreateSession)(ort.env, path, ort.options, &session->session), "loading", why) &&
        ok(CALL(CREATE_BINDING, TwoArguments)(session->session, &session->binding), "binding", why) &&
        bind_all(session, true, why) && bind_all(session, false, why))
        return session;
    close_session(session);
    return NULL;
}

static bool run(void *opaque, Message *why) {
    typedef OrtStatus *(*RunWithBinding)(void *, const void *, const void *);
    Session *session = opaque;
    OrtStatus *status = CALL(RUN_WITH_BINDING, RunWithBinding)(session->session, NULL, session->binding);
    return !status || ok(status, "running", why);
}

const Backend ONNXRUNTIME = {"onnxruntime", load, version, delegate, open_session, run, close_session};
