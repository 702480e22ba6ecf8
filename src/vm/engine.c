/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/engine.h"

#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "base/atomic_file.h"
#include "base/error.h"
#include "qv_config.h"

#define QEMU          "qemu-system-x86_64"
#define VERSION_BYTES 4096u

/* A number of at most three digits; *@at moves behind it. UINT_MAX: none there. */
static unsigned take_number(const char **at)
{
    unsigned value = 0;
    unsigned digits = 0;

    for (; g_ascii_isdigit(**at) && digits < 3; (*at)++, digits++) {
        value = value * 10 + (unsigned)(**at - '0');
    }
    return digits == 0 ? UINT_MAX : value;
}

unsigned vm_engine_version_parse(const char *text)
{
    static const char word[] = "version ";
    const char *at = strstr(text, word);
    unsigned major, minor;

    at = at == NULL ? text : at + strlen(word);
    major = take_number(&at);
    if (major == UINT_MAX || *at++ != '.') {
        return 0;
    }
    minor = take_number(&at);
    return minor == UINT_MAX ? 0 : VM_ENGINE_VERSION(major, minor);
}

void vm_engine_clear(struct vm_engine *engine)
{
    g_clear_pointer(&engine->program, g_free);
    g_clear_pointer(&engine->data_dir, g_free);
}

static bool usable(const char *program)
{
    return access(program, X_OK) == 0;
}

/* PREFIX/engine/bin/QEMU; the version stands in a file beside it, which spares starting it. */
static bool find_private(const char *prefix, struct vm_engine *out)
{
    g_autofree char *program = g_build_filename(prefix, "engine", "bin", QEMU, NULL);
    g_autofree char *version = g_build_filename(prefix, "engine", "version", NULL);
    g_autofree char *text = NULL;
    size_t len;

    if (!usable(program) || !qv_file_read(version, VERSION_BYTES, &text, &len, NULL)) {
        return false;
    }
    out->version = vm_engine_version_parse(text);
    out->program = g_steal_pointer(&program);
    out->data_dir = g_build_filename(prefix, "engine", "root", "usr", "share", NULL);
    return true;
}

static bool find_in_path(struct vm_engine *out, GError **error)
{
    g_autofree char *program = g_find_program_in_path(QEMU);
    g_autofree char *text = NULL;
    const char *argv[] = {program, "--version", NULL};

    if (program == NULL) {
        qv_fail(error, QV_ERROR_UNSUPPORTED, "%s: is not installed", QEMU);
        qv_error_hint(error, "scripts/setup installs it");
        return false;
    }
    if (!g_spawn_sync(NULL, (char **)(uintptr_t)argv, NULL, G_SPAWN_STDERR_TO_DEV_NULL, NULL, NULL,
                      &text, NULL, NULL, NULL)) {
        return qv_fail(error, QV_ERROR_FAILED, "%s: cannot be run", program);
    }
    out->version = vm_engine_version_parse(text);
    out->program = g_steal_pointer(&program);
    return true;
}

bool vm_engine_find(unsigned needed, struct vm_engine *out, GError **error)
{
    g_autofree char *user = g_build_filename(g_get_user_data_dir(), "quantavirt", NULL);
    struct vm_engine engine = {0};

    if (!find_private(QV_PRIVATE_PREFIX, &engine) && !find_private(user, &engine) &&
        !find_in_path(&engine, error)) {
        return false;
    }
    if (engine.version < needed) {
        qv_fail(error, QV_ERROR_UNSUPPORTED, "%s: is version %u.%u, this VM needs %u.%u",
                engine.program, engine.version / 1000, engine.version % 1000, needed / 1000,
                needed % 1000);
        qv_error_hint(error, "scripts/setup lays down a newer one beside the system's");
        vm_engine_clear(&engine);
        return false;
    }
    *out = engine;
    return true;
}

bool vm_engine_ovmf(const struct vm_engine *engine, char **code, char **vars, GError **error)
{
    /* With their variable stores; a mixture of sizes does not boot. */
    static const char *const pairs[][2] = {
        {"OVMF/OVMF_CODE_4M.fd", "OVMF/OVMF_VARS_4M.fd"},
        {"OVMF/OVMF_CODE.fd", "OVMF/OVMF_VARS.fd"},
        {"edk2/ovmf/OVMF_CODE.fd", "edk2/ovmf/OVMF_VARS.fd"},
    };
    const char *const dirs[] = {engine->data_dir, "/usr/share"};

    for (size_t d = 0; d < G_N_ELEMENTS(dirs); d++) {
        for (size_t p = 0; dirs[d] != NULL && p < G_N_ELEMENTS(pairs); p++) {
            g_autofree char *c = g_build_filename(dirs[d], pairs[p][0], NULL);
            g_autofree char *v = g_build_filename(dirs[d], pairs[p][1], NULL);

            if (access(c, R_OK) == 0 && access(v, R_OK) == 0) {
                *code = g_steal_pointer(&c);
                *vars = g_steal_pointer(&v);
                return true;
            }
        }
    }
    qv_fail(error, QV_ERROR_UNSUPPORTED, "firmware uefi: OVMF is not installed");
    qv_error_hint(error, "scripts/setup installs it (package ovmf)");
    return false;
}
