/* The entry point that the NDK's crtbegin would bring: hands the kernel's argument block to bionic, which sets up the C
 * library, calls main and exits with what it returns. */
#include <stddef.h>

typedef struct {
    void (**preinit_array)(void);
    void (**init_array)(void);
    void (**fini_array)(void);
    size_t room[5]; /* later versions of bionic have more fields; static executables alone use them */
} Constructors;

extern void __libc_init(void *raw_arguments, void (*on_exit)(void), int (*main)(int, char **, char **),
                        const Constructors *constructors) __attribute__((noreturn));
extern int main(int count, char **arguments, char **environment);

static const Constructors none; /* the linker has run what there was to run */

__attribute__((used, noreturn)) static void start_in_c(void *raw_arguments) {
    __libc_init(raw_arguments, NULL, main, &none);
}

/* The stack pointer is the address of the argument block, and only assembly can read it before a prologue moves it. */
__asm__(".globl _start\n"
        ".type _start, %function\n"
        "_start:\n"
        "    mov x29, #0\n"
        "    mov x30, #0\n"
        "    mov x0, sp\n"
        "    and sp, x0, #-16\n"
        "    b start_in_c\n");
