/* Start of a Cortex-M4: stack pointer and first instruction, which switches the floating-point unit on, and calls main
   with the host's files in the place of its own. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

extern uint32_t stack_top[];
extern void initialise_monitor_handles(void);
extern int main(void);

static void reset(void)
{
    volatile uint32_t *const coprocessors = (volatile uint32_t *)0xE000ED88;
    *coprocessors |= 0xFu << 20;
    __asm volatile("dsb\n\tisb");
    initialise_monitor_handles();
    const int status = main();
    (void)fflush(stdout);
    _Exit(status);
}

__attribute__((section(".vectors"), used)) static void (*const vectors[2])(void) = {(void (*)(void))stack_top, reset};
