/* TensorFlow Lite through its C API (libtensorflowlite_c.so, libtensorflowlite_jni.so). */
#include "bench.h"

#include <stdlib.h>
#include <string.h>

/* The delegate's options begin with the thread count and have grown from version to version: 4, 8, 16, then more bytes.
 * The largest is far below this. */
typedef struct {
    int32_t threads;
    int32_t rest[255];
} XnnpackOptions;

static struct {
    const char *(*version)(void);
    void *(*model_create_from_file)(const char *);
    void (*model_delete)(void *);
    void *(*options_create)(void);
    void (*options_delete)(void *);
    void (*options_set_num_threads)(void *, int32_t);
    void (*options_add_delegate)(void *, void *);
    void *(*interpreter_create)(const void *, const void *);
    void (*interpreter_delete)(void *);
    int (*allocate_tensors)(void *);
    int (*invoke)(void *);
    int32_t (*input_count)(const void *);
    void *(*input)(const void *, int32_t);
    int (*tensor_type)(const void *);
    size_t (*tensor_bytes)(const void *);
    void *(*tensor_data)(const void *);
    Function xnnpack_options; /* () -> options, by value */
    void *(*xnnpack_create)(const XnnpackOptions *);
    void (*xnnpack_delete)(void *);
    int threads;
    bool is_xnnpack;
} tfl;

typedef struct {
    void *model, *delegate, *interpreter;
} Session;

static bool load(void *library, const Manifest *manifest, Message *why) {
    const Symbol symbols[] = {
        {"TfLiteVersion", (Function *)&tfl.version, false},
        {"TfLiteModelCreateFromFile", (Function *)&tfl.model_create_from_file, false},
        {"TfLiteModelDelete", (Function *)&tfl.model_delete, false},
        {"TfLiteInterpreterOptionsCreate", (Function *)&tfl.options_create, false},
        {"TfLiteInterpreterOptionsDelete", (Function *)&tfl.options_delete, false},
        {"TfLiteInterpreterOptionsSetNumThreads", (Function *)&tfl.options_set_num_threads, false},
        {"TfLiteInterpreterOptionsAddDelegate", (Function *)&tfl.options_add_delegate, false},
        {"TfLiteInterpreterCreate", (Function *)&tfl.interpreter_create, false},
        {"TfLiteInterpreterDelete", (Function *)&tfl.interpreter_delete, false},
        {"TfLiteInterpreterAllocateTensors", (Function *)&tfl.allocate_tensors, false},
        {"TfLiteInterpreterInvoke", (Function *)&tfl.invoke, false},
        {"TfLiteInterpreterGetInputTensorCount", (Function *)&tfl.input_count, false},
        {"TfLiteInterpreterGetInputTensor", (Function *)&tfl.input, false},
        {"TfLiteTensorType", (Function *)&tfl.tensor_type, false},
        {"TfLiteTensorByteSize", (Function *)&tfl.tensor_bytes, false},
        {"TfLiteTensorData", (Function *)&tfl.tensor_data, false},
        {"TfLiteXNNPackDelegateOptionsDefault", &tfl.xnnpack_options, true},
        {"TfLiteXNNPackDelegateCreate", (Function *)&tfl.xnnpack_create, true},
        {"TfLiteXNNPackDelegateDelete", (Function *)&tfl.xnnpack_delete, true},
    };
    tfl.threads = manifest->threads;
    if (!find_symbols(library, symbols, sizeof symbols / sizeof *symbols, why)) return false;
    /* Left to itself the C API ran a network 20 times slower than with the delegate set. */
    tfl.is_xnnpack = !strcmp(manifest->delegate, "xnnpack");
    if (tfl.is_xnnpack && !(tfl.xnnpack_options && tfl.xnnpack_create && tfl.xnnpack_delete)) {
        tfl.is_xnnpack = false;
        log_line("the library exports no XNNPACK delegate: it runs with whatever it applies by itself");
    }
    return true;
}

static const char *version(void) { return tfl.version(); }
static const char *delegate(void) { return tfl.is_xnnpack ? "xnnpack" : "none"; }

static void close_session(void *opaque) {
    Session *session = opaque;
    if (session->interpreter) tfl.interpreter_delete(session->interpreter);
    if (session->delegate) tfl.xnnpack_delete(session->delegate);
    if (session->model) tfl.model_delete(session->model);
    free(session);
}

/* Calls a function that returns a struct of unknown size by value. Up to 16 bytes come back in two registers; a larger
 * one is written to memory whose address the caller passes, in a register that the function otherwise ignores. So both
 * are provided, and the memory tells afterwards which of them was used. */
static void default_xnnpack_options(XnnpackOptions *options) {
    uint64_t low, high;
    memset(options, 0xA5, sizeof *options);
    const int32_t untouched = options->threads;
#if defined(__aarch64__)
    register uint64_t x0 __asm__("x0");
    register uint64_t x1 __asm__("x1");
    register void *memory __asm__("x8") = options;
    __asm__ volatile("blr %[function]"
                     : "=r"(x0), "=r"(x1), "+r"(memory)
                     : [function] "r"(tfl.xnnpack_options)
                     : "x2", "x3", "x4", "x5", "x6", "x7", "x9", "x10", "x11", "x12", "x13", "x14", "x15", "x16", "x17",
                       "x30", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v16", "v17", "v18", "v19", "v20", "v21",
                       "v22", "v23", "v24", "v25", "v26", "v27", "v28", "v29", "v30", "v31", "cc", "memory");
    low = x0;
    high = x1;
#elif defined(__x86_64__)
    typedef struct {
        uint64_t low, high;
    } Registers;
    Registers registers = ((Registers(*)(void *))tfl.xnnpack_options)(options);
    low = registers.low;
    high = registers.high;
#else
#error "only for 64-bit Arm and x86"
#endif
    if (options->threads != untouched) return;
    memset(options, 0, sizeof *options);
    memcpy(options, &low, sizeof low);
    memcpy((char *)options + sizeof low, &high, sizeof high);
}

static bool create_interpreter(Session *session, Message *why) {
    void *options = tfl.options_create();
    tfl.options_set_num_threads(options, tfl.threads);
    if (tfl.is_xnnpack) {
        XnnpackOptions xnnpack;
        default_xnnpack_options(&xnnpack);
        xnnpack.threads = tfl.threads;
        session->delegate = tfl.xnnpack_create(&xnnpack);
        if (session->delegate) tfl.options_add_delegate(options, session->delegate);
    }
    bool good = !tfl.is_xnnpack || session->delegate || fail(why, "TensorFlow Lite cannot create the XNNPACK delegate");
    if (good) session->interpreter = tfl.interpreter_create(session->model, options);
    tfl.options_delete(options);
    return good && (session->interpreter || fail(why, "TensorFlow Lite cannot make an interpreter for this model"));
}

static bool fill_inputs(Session *session, Message *why) {
    int32_t count = tfl.input_count(session->interpreter);
    for (int32_t i = 0; i < count; i++) {
        void *tensor = tfl.input(session->interpreter, i);
        ElementType type = tflite_element_type(tfl.tensor_type(tensor));
        void *data = tfl.tensor_data(tensor);
        if (type == TYPE_UNSUPPORTED || !data)
            return fail(why, "input %d has type %d, which cannot be filled", i, tfl.tensor_type(tensor));
        fill_input(data, tfl.tensor_bytes(tensor) / element_size(type), type);
    }
    return true;
}

static void *open_session(const char *path, Message *why) {
    Session *session = calloc(1, sizeof *session);
    if (!session) return fail(why, "out of memory"), NULL;
    session->model = tfl.model_create_from_file(path);
    bool good = session->model || fail(why, "not a model that TensorFlow Lite reads");
    good = good && create_interpreter(session, why);
    good = good && (tfl.allocate_tensors(session->interpreter) == 0 ||
                    fail(why, "TensorFlow Lite cannot prepare this model"));
    if (good && fill_inputs(session, why)) return session;
    close_session(session);
    return NULL;
}

static bool run(void *opaque, Message *why) {
    int status = tfl.invoke(((Session *)opaque)->interpreter);
    return status == 0 || fail(why, "TensorFlow Lite cannot run this model (status %d)", status);
}

const Backend TFLITE = {"tflite", load, version, delegate, open_session, run, close_session};
