/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Switching stacks without a system call. Only what the calling convention wants kept is kept;
 * floating-point control bits are the same for all coroutines and are left alone.
 */
#ifndef QV_IO_CONTEXT_INT_H
#define QV_IO_CONTEXT_INT_H

#include <stddef.h>

/** Where a stopped execution goes on: its stack pointer; on it lie the registers. */
typedef void *qv_context;

/** qv_context_make - @entry(@arg) on the stack [@base, @base + @size); @entry never returns. */
qv_context qv_context_make(void *base, size_t size, void (*entry)(void *arg), void *arg);

/** qv_context_switch - stores where we are in *@from and goes on at @to. */
void qv_context_switch(qv_context *from, qv_context to);

#endif
