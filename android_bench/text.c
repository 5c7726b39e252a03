/* Text that grows, and JSON strings in it. */
#include "bench.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

bool fail(Message *message, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message->text, sizeof message->text, format, arguments);
    va_end(arguments);
    return false;
}

static void reserve(Text *text, size_t more) {
    if (text->length + more + 1 <= text->capacity) return;
    size_t capacity = (text->length + more + 1) * 2;
    char *bytes = realloc(text->bytes, capacity);
    if (!bytes) {
        log_line("out of memory");
        _exit(1);
    }
    text->bytes = bytes;
    text->capacity = capacity;
}

void text_add(Text *text, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (length < 0) return;
    reserve(text, (size_t)length);
    va_start(arguments, format);
    vsnprintf(text->bytes + text->length, (size_t)length + 1, format, arguments);
    va_end(arguments);
    text->length += (size_t)length;
}

/* Length of the well-formed UTF-8 sequence at `at`, or 0: what a runtime says need not be UTF-8, a JSON line must. */
static int utf8_length(const unsigned char *at) {
    int length = at[0] < 0x80 ? 1 : at[0] >= 0xC2 && at[0] < 0xE0 ? 2 : at[0] >= 0xE0 && at[0] < 0xF0 ? 3 : 0;
    if (at[0] >= 0xF0 && at[0] < 0xF5) length = 4;
    for (int i = 1; i < length; i++)
        if ((at[i] & 0xC0) != 0x80) return 0;
    if (length == 3 && ((at[0] == 0xE0 && at[1] < 0xA0) || (at[0] == 0xED && at[1] >= 0xA0))) return 0;
    if (length == 4 && ((at[0] == 0xF0 && at[1] < 0x90) || (at[0] == 0xF4 && at[1] >= 0x90))) return 0;
    return length;
}

void text_add_json_string(Text *text, const char *value) {
    text_add(text, "\"");
    for (const unsigned char *at = (const unsigned char *)value; *at;) {
        int length = utf8_length(at);
        if (length == 0) {
            text_add(text, "\\ufffd");
            length = 1;
        } else if (*at == '"' || *at == '\\') {
            text_add(text, "\\%c", *at);
        } else if (*at < 0x20 || *at == 0x7F) {
            text_add(text, "\\u%04x", *at);
        } else {
            text_add(text, "%.*s", length, (const char *)at);
        }
        at += length;
    }
    text_add(text, "\"");
}

void text_add_base64(Text *text, const char *bytes, size_t length) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const unsigned char *at = (const unsigned char *)bytes;
    reserve(text, (length + 2) / 3 * 4);
    for (size_t i = 0; i < length; i += 3) {
        size_t left = length - i;
        unsigned triple = (unsigned)at[i] << 16 | (left > 1 ? (unsigned)at[i + 1] << 8 : 0) | (left > 2 ? at[i + 2] : 0);
        char *to = text->bytes + text->length;
        to[0] = digits[triple >> 18];
        to[1] = digits[triple >> 12 & 63];
        to[2] = left > 1 ? digits[triple >> 6 & 63] : '=';
        to[3] = left > 2 ? digits[triple & 63] : '=';
        text->length += 4;
    }
    text->bytes[text->length] = 0;
}

void text_free(Text *text) {
    free(text->bytes);
    memset(text, 0, sizeof *text);
}
