/* LiteRT 2.x through the C API of libLiteRt.so. Its ABI drifts, and the library does not tell its version: the manifest
 * has to. Everything else that changed can be seen from the exported names. */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ACCELERATOR_CPU 1
#define LOCK_FOR_WRITING 1

typedef struct {
    unsigned char rank_and_strides; /* rank in the lower 7 bits */
    unsigned char padding[3];
    int32_t sizes[8];
    uint32_t strides[8];
} Layout;

typedef struct {
    int32_t element_type;
    Layout layout;
} TensorType;

typedef int (*GetCount)(void *, size_t *);
typedef int (*GetIndexed)(void *, size_t, void **);
typedef int (*GetRequirements)(void *, size_t, size_t, void **);

static struct {
    int (*create_environment)(int, const void *, void **);
    Function create_model_from_file; /* by version: (path, model) or (environment, path, model) */
    void (*destroy_model)(void *);
    int (*create_options)(void **);
    void (*destroy_options)(void *);
    int (*set_accelerators)(void *, int);
    int (*create_opaque)(const char *, void *, void (*)(void *), void **);
    int (*add_opaque)(void *, void *);
    int (*create_cpu_options)(void **);
    int (*find_cpu_options)(void *, void **);
    int (*set_cpu_threads)(void *, int);
    int (*create_compiled)(void *, void *, void *, void **);
    void (*destroy_compiled)(void *);
    GetIndexed get_signature;
    GetCount input_count, output_count;
    GetIndexed input_tensor, output_tensor;
    int (*tensor_type)(void *, TensorType *);
    GetRequirements input_requirements, output_requirements;
    int (*create_buffer)(void *, const TensorType *, void *, void **);
    void (*destroy_buffer)(void *);
    int (*lock)(void *, void **, int);
    int (*unlock)(void *);
    int (*run)(void *, size_t, size_t, void **, size_t, void **);
    void *environment;
    int threads;
    bool is_model_made_in_environment;
} rt;

typedef struct {
    void *model, *compiled;
    void *inputs[MAX_TENSORS], *outputs[MAX_TENSORS];
    size_t input_count, output_count;
} Session;

static bool ok(int status, const char *what, Message *why) {
    return status == 0 || fail(why, "LiteRT, %s: status %d", what, status);
}

/* `2.1.6` -> 2001006; 0 for anything else. */
static long version_number(const char *text) {
    int parts[3] = {0}, read = 0;
    if (sscanf(text, "%3d.%3d.%3d%n", &parts[0], &parts[1], &parts[2], &read) != 3) return 0;
    return parts[0] * 1000000L + parts[1] * 1000L + parts[2];
}

static bool load(void *library, const Manifest *manifest, Message *why) {
    const Symbol symbols[] = {
        {"LiteRtCreateEnvironment", (Function *)&rt.create_environment, false},
        {"LiteRtCreateModelFromFile", &rt.create_model_from_file, false},
        {"LiteRtDestroyModel", (Function *)&rt.destroy_model, false},
        {"LiteRtCreateOptions", (Function *)&rt.create_options, false},
        {"LiteRtDestroyOptions", (Function *)&rt.destroy_options, false},
        {"LiteRtSetOptionsHardwareAccelerators", (Function *)&rt.set_accelerators, false},
        {"LiteRtCreateOpaqueOptions", (Function *)&rt.create_opaque, false},
        {"LiteRtAddOpaqueOptions", (Function *)&rt.add_opaque, false},
        {"LiteRtCreateCpuOptions", (Function *)&rt.create_cpu_options, true},
        {"LiteRtFindCpuOptions", (Function *)&rt.find_cpu_options, true},
        {"LiteRtSetCpuOptionsNumThread", (Function *)&rt.set_cpu_threads, true},
        {"LiteRtCreateCompiledModel", (Function *)&rt.create_compiled, false},
        {"LiteRtDestroyCompiledModel", (Function *)&rt.destroy_compiled, false},
        {"LiteRtGetModelSignature", (Function *)&rt.get_signature, false},
        {"LiteRtGetNumSignatureInputs", (Function *)&rt.input_count, false},
        {"LiteRtGetNumSignatureOutputs", (Function *)&rt.output_count, false},
        {"LiteRtGetSignatureInputTensorByIndex", (Function *)&rt.input_tensor, false},
        {"LiteRtGetSignatureOutputTensorByIndex", (Function *)&rt.output_tensor, false},
        {"LiteRtGetRankedTensorType", (Function *)&rt.tensor_type, false},
        {"LiteRtGetCompiledModelInputBufferRequirements", (Function *)&rt.input_requirements, false},
        {"LiteRtGetCompiledModelOutputBufferRequirements", (Function *)&rt.output_requirements, false},
        {"LiteRtCreateManagedTensorBufferFromRequirements", (Function *)&rt.create_buffer, false},
        {"LiteRtDestroyTensorBuffer", (Function *)&rt.destroy_buffer, false},
        {"LiteRtLockTensorBuffer", (Function *)&rt.lock, false},
        {"LiteRtUnlockTensorBuffer", (Function *)&rt.unlock, false},
        {"LiteRtRunCompiledModel", (Function *)&rt.run, false},
    };
    long number = version_number(manifest->runtime_version);
    if (number < 2001000 || number >= 3000000)
        return fail(why, "LiteRT %s: this runner knows the versions 2.1.0 to 2.x", manifest->runtime_version);
    rt.is_model_made_in_environment = number >= 2001006;
    rt.threads = manifest->threads;
    return find_symbols(library, symbols, sizeof symbols / sizeof *symbols, why) &&
           ok(rt.create_environment(0, NULL, &rt.environment), "environment", why);
}

static const char *version(void) { return ""; }
static const char *delegate(void) { return "xnnpack"; }

/* Options of the CPU kernels: a struct behind functions in early versions, later a TOML text handed over as such. */
static bool add_threads(void *options, Message *why) {
    void *opaque = NULL, *cpu = NULL;
    if (rt.create_cpu_options && rt.find_cpu_options && rt.set_cpu_threads) {
        return ok(rt.create_cpu_options(&opaque), "CPU options", why) &&
               ok(rt.find_cpu_options(opaque, &cpu), "CPU options", why) &&
               ok(rt.set_cpu_threads(cpu, rt.threads), "threads", why) &&
               ok(rt.add_opaque(options, opaque), "CPU options", why);
    }
    char *toml = malloc(64);
    if (!toml) return fail(why, "out of memory");
    snprintf(toml, 64, "num_threads = %d\n", rt.threads);
    return ok(rt.create_opaque("xnnpack", toml, free, &opaque), "CPU options", why) &&
           ok(rt.add_opaque(options, opaque), "CPU options", why);
}

static bool compile(Session *session, const char *path, Message *why) {
    typedef int (*FromFile)(const char *, void **);
    typedef int (*FromFileInEnvironment)(void *, const char *, void **);
    int status = rt.is_model_made_in_environment
                     ? ((FromFileInEnvironment)rt.create_model_from_file)(rt.environment, path, &session->model)
                     : ((FromFile)rt.create_model_from_file)(path, &session->model);
    void *options = NULL;
    if (!ok(status, "reading the model", why) || !ok(rt.create_options(&options), "options", why)) return false;
    bool good = ok(rt.set_accelerators(options, ACCELERATOR_CPU), "options", why) && add_threads(options, why) &&
                ok(rt.create_compiled(rt.environment, session->model, options, &session->compiled), "preparing", why);
    rt.destroy_options(options);
    return good;
}

static bool fill(void *buffer, const TensorType *type, Message *why) {
    void *data = NULL;
    size_t count = 1;
    ElementType element = tflite_element_type(type->element_type);
    if (element == TYPE_UNSUPPORTED) return fail(why, "an input has type %d, which cannot be filled", type->element_type);
    for (int i = 0; i < (type->layout.rank_and_strides & 127); i++) {
        if (type->layout.sizes[i] < 0) return fail(why, "an input has a free size");
        count *= (size_t)type->layout.sizes[i];
    }
    if (!ok(rt.lock(buffer, &data, LOCK_FOR_WRITING), "locking an input", why)) return false;
    fill_input(data, count, element);
    return ok(rt.unlock(buffer), "unlocking an input", why);
}

static bool create_buffers(Session *session, void *signature, bool is_input, Message *why) {
    size_t count = 0;
    if (!ok((is_input ? rt.input_count : rt.output_count)(signature, &count), "signature", why)) return false;
    if (count > MAX_TENSORS) return fail(why, "more than %d inputs or outputs", MAX_TENSORS);
    for (size_t i = 0; i < count; i++) {
        void *tensor = NULL, *requirements = NULL;
        void **buffer = is_input ? &session->inputs[i] : &session->outputs[i];
        TensorType type = {0};
        if (!ok((is_input ? rt.input_tensor : rt.output_tensor)(signature, i, &tensor), "tensor", why) ||
            !ok(rt.tensor_type(tensor, &type), "tensor type", why) ||
            !ok((is_input ? rt.input_requirements : rt.output_requirements)(session->compiled, 0, i, &requirements),
                "buffer requirements", why) ||
            !ok(rt.create_buffer(rt.environment, &type, requirements, buffer), "buffer", why))
            return false;
        if (is_input) session->input_count++;
        else session->output_count++;
        if (is_input && !fill(*buffer, &type, why)) return false;
    }
    return true;
}

static void close_session(void *opaque) {
    Session *session = opaque;
    for (size_t i = 0; i < session->input_count; i++) rt.destroy_buffer(session->inputs[i]);
    for (size_t i = 0; i < session->output_count; i++) rt.destroy_buffer(session->outputs[i]);
    if (session->compiled) rt.destroy_compiled(session->compiled);
    if (session->model) rt.destroy_model(session->model);
    free(session);
}

static void *open_session(const char *path, Message *why) {
    void *signature = NULL;
    Session *session = calloc(1, sizeof *session);
    if (!session) return fail(why, "out of memory"), NULL;
    /* A model without signatures is given one by the library. */
    if (compile(session, path, why) && ok(rt.get_signature(session->model, 0, &signature), "signature", why) &&
        create_buffers(session, signature, true, why) && create_buffers(session, signature, false, why))
        return session;
    close_session(session);
    return NULL;
}

static bool run(void *opaque, Message *why) {
    Session *session = opaque;
    return ok(rt.run(session->compiled, 0, session->input_count, session->inputs, session->output_count,
                     session->outputs), "running", why);
}

const Backend LITERT = {"litert", load, version, delegate, open_session, run, close_session};
