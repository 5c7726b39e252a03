/* A library with TFLite's C API whose models are text files that say what shall happen: "ok", "sleep MS", "hang",
 * "crash", "fail", "print", "memory MB". Anything else is not a model. Inputs of every type are checked at each run.
 * Built with -DOPTION_BYTES=N for the sizes that the delegate's options have had. $FAKE_TRACE: a file that gets one
 * letter per run, the second word's first letter or '.'. */
#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef OPTION_BYTES
#define OPTION_BYTES 24
#endif
#define ELEMENTS 64

typedef struct {
    int32_t threads;
#if OPTION_BYTES > 4
    uint32_t flags;
#endif
#if OPTION_BYTES > 8
    int32_t rest[(OPTION_BYTES - 8) / 4];
#endif
} DelegateOptions;

typedef struct {
    char verb[32], argument[32];
} Model;

static const int TYPES[] = {1, 2, 3, 4, 6, 7, 9, 10, 11};
static const size_t SIZES[] = {4, 4, 1, 8, 1, 2, 1, 2, 8};
enum { INPUTS = sizeof TYPES / sizeof *TYPES };

typedef struct {
    int type;
    size_t bytes;
    char data[8 * ELEMENTS];
} Tensor;

typedef struct {
    const Model *model;
    Tensor inputs[INPUTS];
    char *memory;
} Interpreter;

static int option_threads;

const char *TfLiteVersion(void) { return "9.8.7"; }

void *TfLiteModelCreateFromFile(const char *path) {
    static const char *const verbs[] = {"ok", "sleep", "hang", "crash", "fail", "print", "memory"};
    Model *model = calloc(1, sizeof *model);
    FILE *file = fopen(path, "r");
    if (!file || fscanf(file, "%31s %31s", model->verb, model->argument) < 1) return NULL;
    fclose(file);
    for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++)
        if (!strcmp(model->verb, verbs[i])) return model;
    return NULL;
}
void TfLiteModelDelete(void *model) { free(model); }

void *TfLiteInterpreterOptionsCreate(void) { return calloc(1, 8); }
void TfLiteInterpreterOptionsDelete(void *options) { free(options); }
void TfLiteInterpreterOptionsSetNumThreads(void *options, int32_t threads) {
    (void)options;
    option_threads = threads;
}
void TfLiteInterpreterOptionsAddDelegate(void *options, void *delegate) { (void)options, (void)delegate; }

#ifndef NO_DELEGATE
DelegateOptions TfLiteXNNPackDelegateOptionsDefault(void) {
    DelegateOptions options;
    memset(&options, 0, sizeof options);
    options.threads = 1;
#if OPTION_BYTES > 4
    options.flags = 0x5EED;
#endif
#if OPTION_BYTES > 8
    for (size_t i = 0; i < sizeof options.rest / sizeof *options.rest; i++) options.rest[i] = (int32_t)(1000 + i);
#endif
    return options;
}

void *TfLiteXNNPackDelegateCreate(const DelegateOptions *options) {
    DelegateOptions wanted = TfLiteXNNPackDelegateOptionsDefault();
    wanted.threads = options->threads;
    fprintf(stderr, "delegate with %d threads, defaults %s\n", options->threads,
            memcmp(&wanted, options, sizeof wanted) ? "lost" : "kept");
    return malloc(1);
}
void TfLiteXNNPackDelegateDelete(void *delegate) { free(delegate); }
#endif

void *TfLiteInterpreterCreate(const void *model, const void *options) {
    (void)options;
    Interpreter *made = calloc(1, sizeof *made);
    made->model = model;
    fprintf(stderr, "interpreter with %d threads\n", option_threads);
    for (int i = 0; i < INPUTS; i++) {
        made->inputs[i].type = TYPES[i];
        made->inputs[i].bytes = SIZES[i] * ELEMENTS;
        memset(made->inputs[i].data, 0xFF, sizeof made->inputs[i].data); /* NaN, and out of every range */
    }
    if (!strcmp(made->model->verb, "memory")) {
        size_t bytes = (size_t)atoi(made->model->argument) << 20;
        made->memory = malloc(bytes);
        for (size_t i = 0; i < bytes; i += 512) made->memory[i] = (char)(i >> 9);
    }
    return made;
}
void TfLiteInterpreterDelete(void *interpreter) {
    free(((Interpreter *)interpreter)->memory);
    free(interpreter);
}
int TfLiteInterpreterAllocateTensors(void *interpreter) { return interpreter == NULL; }
int32_t TfLiteInterpreterGetInputTensorCount(const void *interpreter) { return interpreter ? INPUTS : 0; }
void *TfLiteInterpreterGetInputTensor(const void *interpreter, int32_t index) {
    return &((Interpreter *)(uintptr_t)interpreter)->inputs[index];
}
int TfLiteTensorType(const void *tensor) { return ((const Tensor *)tensor)->type; }
size_t TfLiteTensorByteSize(const void *tensor) { return ((const Tensor *)tensor)->bytes; }
void *TfLiteTensorData(const void *tensor) { return ((Tensor *)(uintptr_t)tensor)->data; }

static int is_unit(double value) { return value == 0 || (value >= 1e-7 && value < 1); }

static double half(uint16_t bits) {
    int exponent = bits >> 10 & 31;
    return bits == 0 ? 0 : exponent == 0 || exponent == 31 ? NAN : ldexp(1024 + (bits & 1023), exponent - 25);
}

static int is_element_good(const Tensor *tensor, size_t i) {
    const void *data = tensor->data;
    switch (tensor->type) {
    case 1: return is_unit(((const float *)data)[i]);
    case 2: return ((const uint32_t *)data)[i] < 100;
    case 4: return ((const int64_t *)data)[i] == 0;
    case 6: return ((const unsigned char *)data)[i] < 2;
    case 7: return ((const uint16_t *)data)[i] < 100;
    case 10: return is_unit(half(((const uint16_t *)data)[i]));
    case 11: return is_unit(((const double *)data)[i]);
    default: return ((const unsigned char *)data)[i] < 100;
    }
}

static int is_input_good(const Tensor *tensor) {
    size_t size = tensor->bytes / ELEMENTS, differing = 0;
    for (size_t i = 0; i < ELEMENTS; i++) {
        if (!is_element_good(tensor, i)) return 0;
        differing += memcmp(tensor->data, tensor->data + i * size, size) != 0;
    }
    return tensor->type == 4 ? differing == 0 : differing > 10;
}

int TfLiteInterpreterInvoke(void *interpreter) {
    const Interpreter *made = interpreter;
    const char *verb = made->model->verb, *trace = getenv("FAKE_TRACE");
    for (int i = 0; i < INPUTS; i++)
        if (!is_input_good(&made->inputs[i])) return 100 + TYPES[i];
    if (trace) {
        FILE *file = fopen(trace, "a");
        fputc(made->model->argument[0] ? made->model->argument[0] : '.', file);
        fclose(file);
    }
    if (!strcmp(verb, "sleep")) usleep(1000 * (useconds_t)atoi(made->model->argument));
    if (!strcmp(verb, "hang"))
        for (;;) pause();
    if (!strcmp(verb, "crash")) raise(SIGSEGV);
    if (!strcmp(verb, "print")) printf("{\"event\":\"noise\"}\n"), fflush(stdout);
    return !strcmp(verb, "fail");
}
