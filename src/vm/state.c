/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/state.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"

#define STATE_BYTES_MAX (64u << 10)

static const char *const state_words[] = {"created", "running", "paused", "stopped", "migrating"};
static_assert(G_N_ELEMENTS(state_words) == VM_STATES, "one word a state");

/* Row: from; column: to. A VM begins to live by a start (paused first, then running, or at once),
 * and ends in "stopped" from wherever it was. */
static const bool moves[VM_STATES][VM_STATES] = {
    [VM_CREATED] = {[VM_RUNNING] = true, [VM_PAUSED] = true},
    [VM_RUNNING] = {[VM_PAUSED] = true, [VM_STOPPED] = true, [VM_MIGRATING] = true},
    [VM_PAUSED] = {[VM_RUNNING] = true, [VM_STOPPED] = true, [VM_MIGRATING] = true},
    [VM_STOPPED] = {[VM_RUNNING] = true, [VM_PAUSED] = true},
    [VM_MIGRATING] = {[VM_RUNNING] = true, [VM_PAUSED] = true, [VM_STOPPED] = true},
};

const char *vm_state_name(enum vm_state state)
{
    return state_words[state];
}

bool vm_state_parse(const char *word, enum vm_state *out)
{
    for (unsigned i = 0; i < VM_STATES; i++) {
        if (strcmp(word, state_words[i]) == 0) {
            *out = (enum vm_state)i;
            return true;
        }
    }
    return false;
}

bool vm_state_alive(enum vm_state state)
{
    return state == VM_RUNNING || state == VM_PAUSED || state == VM_MIGRATING;
}

/* Fields 3 (state) and 22 (start time) of /proc/PID/stat; the name before them may hold anything,
 * so they are counted from the last parenthesis. */
static bool read_stat(pid_t pid, char *state, uint64_t *started)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/stat", (int)pid);
    g_autofree char *text = NULL;
    g_auto(GStrv) fields = NULL;
    const char *after;

    if (!g_file_get_contents(path, &text, NULL, NULL) || (after = strrchr(text, ')')) == NULL ||
        after[1] != ' ') {
        return false;
    }
    fields = g_strsplit(after + 2, " ", 0);
    if (g_strv_length(fields) < 20) {
        return false;
    }
    *state = fields[0][0];
    *started = g_ascii_strtoull(fields[19], NULL, 10);
    return true;
}

struct vm_process vm_process_of(pid_t pid)
{
    struct vm_process process = {.pid = pid};
    char state;

    if (pid <= 0 || !read_stat(pid, &state, &process.started)) {
        return (struct vm_process){0};
    }
    return process;
}

bool vm_process_alive(const struct vm_process *process)
{
    uint64_t started;
    char state;

    return process->pid > 0 && read_stat(process->pid, &state, &started) &&
           started == process->started && state != 'Z' && state != 'X';
}

void vm_status_clear(struct vm_status *status)
{
    g_free(status->reason);
    g_free(status->accelerator);
    *status = (struct vm_status){0};
}

bool vm_status_move(struct vm_status *status, enum vm_state to, const char *reason, GError **error)
{
    char *copy;

    if (status->state != to && !moves[status->state][to]) {
        return qv_fail(error, QV_ERROR_FAILED, "a VM that is %s cannot become %s",
                       vm_state_name(status->state), vm_state_name(to));
    }
    copy = g_strdup(reason); /* which may be the old one */
    g_free(status->reason);
    status->reason = copy;
    status->state = to;
    return true;
}

static json_t *process_json(const struct vm_process *process)
{
    return process->pid == 0 ? json_null()
                             : json_pack("{s:I, s:I}", "pid", (json_int_t)process->pid, "started",
                                         (json_int_t)process->started);
}

static struct vm_process process_parse(const json_t *json)
{
    return (struct vm_process){
        .pid = (pid_t)json_integer_value(json_object_get(json, "pid")),
        .started = (uint64_t)json_integer_value(json_object_get(json, "started")),
    };
}

bool vm_status_save(const struct vm_status *status, const char *path, GError **error)
{
    g_autoptr(json_t) json = json_object();

    json_object_set_new(json, "state", json_string(vm_state_name(status->state)));
    json_object_set_new(json, "reason", qv_json_string_or_null(status->reason));
    json_object_set_new(json, "since", json_integer(status->since));
    json_object_set_new(json, "accelerator", qv_json_string_or_null(status->accelerator));
    json_object_set_new(json, "supervisor", process_json(&status->supervisor));
    json_object_set_new(json, "qemu", process_json(&status->qemu));
    json_object_set_new(json, "io", process_json(&status->io));
    return qv_json_save(path, json, error);
}

bool vm_status_load(const char *path, struct vm_status *out, GError **error)
{
    g_autoptr(json_t) json = NULL;
    g_autoptr(GError) why = NULL;
    struct vm_status status = {0};
    const char *word;

    if (!qv_json_load(path, STATE_BYTES_MAX, &json, &why)) {
        if (g_error_matches(why, QV_ERROR, QV_ERROR_NOT_FOUND)) {
            *out = status;
            return true;
        }
        return qv_fail(error, QV_ERROR_FAILED, "%s", why->message);
    }
    word = json_string_value(json_object_get(json, "state"));
    if (word == NULL || !vm_state_parse(word, &status.state)) {
        return qv_fail(error, QV_ERROR_FAILED, "%s: is not a VM's state", path);
    }
    status.reason = g_strdup(json_string_value(json_object_get(json, "reason")));
    status.accelerator = g_strdup(json_string_value(json_object_get(json, "accelerator")));
    status.since = json_integer_value(json_object_get(json, "since"));
    status.supervisor = process_parse(json_object_get(json, "supervisor"));
    status.qemu = process_parse(json_object_get(json, "qemu"));
    status.io = process_parse(json_object_get(json, "io"));
    *out = status;
    return true;
}
