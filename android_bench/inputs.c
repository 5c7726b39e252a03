/* Input data: the same on every run, never denormal, never NaN, and no index out of range. */
#include "bench.h"

#include <string.h>

static uint64_t next_random(uint64_t *state) { /* xorshift64* (Marsaglia 2003, Vigna 2016) */
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545F4914F6CDD1Dull;
}

size_t element_size(ElementType type) {
    switch (type) {
    case TYPE_BOOL:
    case TYPE_INT8: return 1;
    case TYPE_F16:
    case TYPE_BF16:
    case TYPE_INT16: return 2;
    case TYPE_F32:
    case TYPE_INT32: return 4;
    case TYPE_F64:
    case TYPE_INT64: return 8;
    default: return 0;
    }
}

/* i / 1024 as a half-precision number, i in 0..1023: all of them are exact and none is denormal. */
static uint16_t half_of_1024ths(unsigned i) {
    if (i == 0) return 0;
    unsigned exponent = 15 + 0; /* of 1.0 x 2^0, reached when i == 1024 */
    while (i < 1024) {
        i <<= 1;
        exponent--;
    }
    return (uint16_t)(exponent << 10 | (i & 1023));
}

static void put(char *at, ElementType type, uint64_t random) {
    float f32 = (float)(random >> 40) / 16777216.0f;
    double f64 = f32;
    uint64_t integer = random % 100;
    switch (type) {
    case TYPE_F16: {
        uint16_t half = half_of_1024ths((unsigned)(random >> 54));
        memcpy(at, &half, 2);
        break;
    }
    case TYPE_BF16: {
        uint32_t bits;
        memcpy(&bits, &f32, 4);
        uint16_t upper = (uint16_t)(bits >> 16);
        memcpy(at, &upper, 2);
        break;
    }
    case TYPE_F32: memcpy(at, &f32, 4); break;
    case TYPE_F64: memcpy(at, &f64, 8); break;
    case TYPE_BOOL: *at = (char)(random >> 63); break;
    case TYPE_INT8: *at = (char)integer; break;
    case TYPE_INT16: {
        uint16_t value = (uint16_t)integer;
        memcpy(at, &value, 2);
        break;
    }
    case TYPE_INT32: {
        uint32_t value = (uint32_t)integer;
        memcpy(at, &value, 4);
        break;
    }
    default: memset(at, 0, element_size(type)); /* 64-bit integers are indices: only 0 is always in range */
    }
}

void fill_input(void *data, size_t count, ElementType type) {
    uint64_t state = 0x9E3779B97F4A7C15ull; /* the fixed seed */
    for (size_t i = 0; i < count; i++) put((char *)data + i * element_size(type), type, next_random(&state));
}

ElementType tflite_element_type(int type) {
    switch (type) {
    case 1: return TYPE_F32;
    case 2:
    case 16: return TYPE_INT32;
    case 3:
    case 9: return TYPE_INT8;
    case 4:
    case 13: return TYPE_INT64;
    case 6: return TYPE_BOOL;
    case 7:
    case 17: return TYPE_INT16;
    case 10: return TYPE_F16;
    case 11: return TYPE_F64;
    case 19: return TYPE_BF16;
    default: return TYPE_UNSUPPORTED;
    }
}
