/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stack switching for x86-64 (System V ABI), AArch64 (AAPCS64), and by ucontext elsewhere.
 *
 * A fresh stack holds what qv_context_switch expects to pop, with qv_context_entry as the place to
 * go on: it calls the entry function. Its frame says "no caller", so that debuggers' backtraces end
 * there.
 */
#include "io/context_int.h"

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)

/* rbp, rbx, r12..r15 are the callee's to keep. */
__asm__(".text\n"
        ".p2align 4\n"
        ".globl qv_context_switch\n"
        ".hidden qv_context_switch\n"
        ".type qv_context_switch, @function\n"
        "qv_context_switch:\n"
        "    .cfi_startproc\n"
        "    pushq %rbp\n"
        "    .cfi_adjust_cfa_offset 8\n"
        "    .cfi_rel_offset rbp, 0\n"
        "    pushq %rbx\n"
        "    .cfi_adjust_cfa_offset 8\n"
        "    pushq %r12\n"
        "    .cfi_adjust_cfa_offset 8\n"
        "    pushq %r13\n"
        "    .cfi_adjust_cfa_offset 8\n"
        "    pushq %r14\n"
        "    .cfi_adjust_cfa_offset 8\n"
        "    pushq %r15\n"
        "    .cfi_adjust_cfa_offset 8\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n"
        "    .cfi_adjust_cfa_offset -8\n"
        "    popq %r14\n"
        "    .cfi_adjust_cfa_offset -8\n"
        "    popq %r13\n"
        "    .cfi_adjust_cfa_offset -8\n"
        "    popq %r12\n"
        "    .cfi_adjust_cfa_offset -8\n"
        "    popq %rbx\n"
        "    .cfi_adjust_cfa_offset -8\n"
        "    popq %rbp\n"
        "    .cfi_adjust_cfa_offset -8\n"
        "    .cfi_restore rbp\n"
        /* Not ret: the return predictor knows the other stack's callers. */
        "    popq %rcx\n"
        "    .cfi_adjust_cfa_offset -8\n"
        "    .cfi_register rip, rcx\n"
        "    jmpq *%rcx\n"
        "    .cfi_endproc\n"
        ".size qv_context_switch, .-qv_context_switch\n"
        ".p2align 4\n"
        ".type qv_context_entry, @function\n"
        "qv_context_entry:\n"
        "    .cfi_startproc\n"
        "    .cfi_undefined rip\n"
        "    movq %r12, %rdi\n"
        "    callq *%r13\n"
        "    ud2\n"
        "    .cfi_endproc\n"
        ".size qv_context_entry, .-qv_context_entry\n");

void qv_context_entry(void);

qv_context qv_context_make(void *base, size_t size, void (*entry)(void *arg), void *arg)
{
    /* Popped upwards: r15, r14, r13, r12, rbx, rbp, address. Then rsp is 16 below the end, aligned
     * as the ABI wants it at the entry's call. */
    uintptr_t *sp = (uintptr_t *)(void *)((char *)base + size) - 9;

    memset(sp, 0, 9 * sizeof(*sp));
    sp[2] = (uintptr_t)entry;
    sp[3] = (uintptr_t)arg;
    sp[6] = (uintptr_t)qv_context_entry;
    return sp;
}

#elif defined(__aarch64__)

/* x19..x28, frame pointer, link register and d8..d15 are the callee's to keep. */
__asm__(".text\n"
        ".p2align 4\n"
        ".globl qv_context_switch\n"
        ".hidden qv_context_switch\n"
        ".type qv_context_switch, %function\n"
        "qv_context_switch:\n"
        "    .cfi_startproc\n"
        "    hint #34\n" /* bti c */
        "    sub sp, sp, #160\n"
        "    .cfi_adjust_cfa_offset 160\n"
        "    stp x19, x20, [sp, #0]\n"
        "    stp x21, x22, [sp, #16]\n"
        "    stp x23, x24, [sp, #32]\n"
        "    stp x25, x26, [sp, #48]\n"
        "    stp x27, x28, [sp, #64]\n"
        "    stp x29, x30, [sp, #80]\n"
        "    .cfi_rel_offset x29, 80\n"
        "    .cfi_rel_offset x30, 88\n"
        "    stp d8, d9, [sp, #96]\n"
        "    stp d10, d11, [sp, #112]\n"
        "    stp d12, d13, [sp, #128]\n"
        "    stp d14, d15, [sp, #144]\n"
        "    mov x9, sp\n"
        "    str x9, [x0]\n"
        "    mov sp, x1\n"
        "    ldp x19, x20, [sp, #0]\n"
        "    ldp x21, x22, [sp, #16]\n"
        "    ldp x23, x24, [sp, #32]\n"
        "    ldp x25, x26, [sp, #48]\n"
        "    ldp x27, x28, [sp, #64]\n"
        "    ldp x29, x30, [sp, #80]\n"
        "    ldp d8, d9, [sp, #96]\n"
        "    ldp d10, d11, [sp, #112]\n"
        "    ldp d12, d13, [sp, #128]\n"
        "    ldp d14, d15, [sp, #144]\n"
        "    add sp, sp, #160\n"
        "    .cfi_adjust_cfa_offset -160\n"
        "    .cfi_restore x29\n"
        "    .cfi_restore x30\n"
        "    ret\n"
        "    .cfi_endproc\n"
        ".size qv_context_switch, .-qv_context_switch\n"
        ".p2align 4\n"
        ".type qv_context_entry, %function\n"
        "qv_context_entry:\n"
        "    .cfi_startproc\n"
        "    .cfi_undefined x30\n"
        "    mov x0, x19\n"
        "    blr x20\n"
        "    brk #1\n"
        "    .cfi_endproc\n"
        ".size qv_context_entry, .-qv_context_entry\n");

void qv_context_entry(void);

qv_context qv_context_make(void *base, size_t size, void (*entry)(void *arg), void *arg)
{
    uintptr_t *sp = (uintptr_t *)(void *)((char *)base + size) - 20;

    memset(sp, 0, 20 * sizeof(*sp));
    sp[0] = (uintptr_t)arg;
    sp[1] = (uintptr_t)entry;
    sp[11] = (uintptr_t)qv_context_entry; /* x30 */
    return sp;
}

#else

#include <ucontext.h>

/* Slower: swapcontext saves the signal mask by a system call. */
static void trampoline(unsigned entry_lo, unsigned entry_hi, unsigned arg_lo, unsigned arg_hi)
{
    uint64_t entry = entry_lo | (uint64_t)entry_hi << 32;
    uint64_t arg = arg_lo | (uint64_t)arg_hi << 32;

    ((void (*)(void *))(uintptr_t)entry)((void *)(uintptr_t)arg);
}

qv_context qv_context_make(void *base, size_t size, void (*entry)(void *arg), void *arg)
{
    /* The saved context lies at the stack's lower end, which is then no stack. */
    ucontext_t *uc = base;
    uint64_t e = (uintptr_t)entry;
    uint64_t a = (uintptr_t)arg;

    getcontext(uc);
    uc->uc_stack.ss_sp = uc + 1;
    uc->uc_stack.ss_size = size - sizeof(*uc);
    uc->uc_link = NULL;
    makecontext(uc, (void (*)(void))trampoline, 4, (unsigned)e, (unsigned)(e >> 32), (unsigned)a,
                (unsigned)(a >> 32));
    return uc;
}

void qv_context_switch(qv_context *from, qv_context to)
{
    ucontext_t here;

    /* Dead once it is resumed: it is switched to once. */
    /* cppcheck-suppress autoVariables */
    *from = &here;
    swapcontext(&here, to);
}

#endif
