// A benchmark_model that measures nothing: the model's text says what it prints.
// `classic 1500.25`: the first format, in microseconds; `litert 1.50`: the second, in ms; anything else is no model.
#include <stdio.h>
#include <string.h>

int main(int count, char **words) {
    const char *path = "";
    for (int i = 1; i < count; i++) {
        if (strncmp(words[i], "--graph=", 8) == 0) path = words[i] + 8;
        if (strncmp(words[i], "--warmup_runs=", 14) == 0) printf("INFO: Min warmup runs: [%s]\n", words[i] + 14);
    }
    char kind[20] = "", value[20] = "";
    FILE *file = fopen(path, "r");
    if (file == NULL || fscanf(file, "%19s %19s", kind, value) < 1) return 3;
    if (strcmp(kind, "classic") == 0) {
        printf("count=4 first=9000 curr=2000 min=2000 max=9000 avg=4000 std=10\n\n");
        printf("count=50 first=1600 curr=1500 min=1400 max=1900 avg=%s std=20\n\n", value);
        printf("Inference timings in us: Init: 800, First inference: 9000, Warmup (avg): 4000, Inference (avg): %s\n", value);
    } else if (strcmp(kind, "litert") == 0) {
        printf("\n========== BENCHMARK RESULTS ==========\nModel initialization: 0.80 ms\n");
        printf("Warmup (first):       9.00 ms\nWarmup (avg):         4.00 ms (4 runs)\n");
        printf("Inference (avg):      %s ms (50 runs)\nInference (min):      0.01 ms\n", value);
        printf("Inference (max):      9.00 ms\n======================================\n");
    } else {
        fprintf(stderr, "ERROR: Failed to load model\n");
        return 1;
    }
    return 0;
}
