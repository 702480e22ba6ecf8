/* SPDX-License-Identifier: Apache-2.0 */
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "base/error.h"
#include "guest/fake_vm.h"
#include "io/thread.h"
#include "pci_model.h"

static uint32_t config_read(struct qv_pci_function *fn, unsigned offset, unsigned size)
{
    uint32_t value = 0;

    qv_pci_config_read(fn, offset, &value, size);
    return value;
}

static void config_write(struct qv_pci_function *fn, unsigned offset, uint32_t value, unsigned size)
{
    qv_pci_config_write(fn, offset, &value, size);
}

static uint64_t bar_read(struct qv_pci_function *fn, uint64_t offset, unsigned size)
{
    uint64_t value = 0;

    assert_true(qv_pci_bar_read(fn, 0, offset, &value, size));
    return value;
}

static void bar_write(struct qv_pci_function *fn, uint64_t offset, uint64_t value, unsigned size)
{
    assert_true(qv_pci_bar_write(fn, 0, offset, &value, size));
}

static void count(void *arg)
{
    unsigned *calls = arg;

    (*calls)++;
}

static void test_identity_shows_in_configuration_space(void **state)
{
    struct pci_model *m = pci_model_new();

    assert_int_equal(config_read(m->fn, 0, 4), 0x0e0e1b36);
    assert_int_equal(config_read(m->fn, 8, 4), 0xff000003);
    assert_int_equal(config_read(m->fn, 0x2c, 4), 0x11001b36);
    assert_int_equal(config_read(m->fn, 0x3d, 1), 1);
    assert_int_equal(config_read(m->fn, 0x0e, 1), 0); /* one function, type 0 */
    qv_pci_function_free(m->fn);
}

static void test_bars_answer_sizing(void **state)
{
    struct pci_model *m = pci_model_new();

    config_write(m->fn, 0x10, 0xffffffff, 4);
    config_write(m->fn, 0x14, 0xffffffff, 4);
    config_write(m->fn, 0x20, 0xffffffff, 4);
    config_write(m->fn, 0x18, 0xffffffff, 4);
    assert_int_equal(config_read(m->fn, 0x10, 4), 0xffffc004);
    assert_int_equal(config_read(m->fn, 0x14, 4), 0xffffffff);
    assert_int_equal(config_read(m->fn, 0x20, 4), 0xfffffff1);
    assert_int_equal(config_read(m->fn, 0x18, 4), 0); /* there is none */
    qv_pci_function_free(m->fn);
}

static unsigned find_cap(struct qv_pci_function *fn, uint8_t id)
{
    unsigned at = config_read(fn, 0x34, 1);

    assert_true(config_read(fn, 6, 2) & 0x10);
    for (unsigned hops = 0; at != 0 && hops < 48; hops++) {
        if (config_read(fn, at, 1) == id) {
            return at;
        }
        at = config_read(fn, at + 1, 1);
    }
    return 0;
}

static void test_capabilities_are_a_list(void **state)
{
    struct pci_model *m = pci_model_new();
    unsigned msix = find_cap(m->fn, 0x11), msi = find_cap(m->fn, 0x05);

    assert_int_not_equal(find_cap(m->fn, 0x10), 0);
    assert_int_not_equal(msix, 0);
    assert_int_equal(config_read(m->fn, msix + 2, 2), PCI_MODEL_VECTORS - 1);
    assert_int_equal(config_read(m->fn, msix + 4, 4), PCI_MODEL_TABLE);
    assert_int_equal(config_read(m->fn, msix + 8, 4), PCI_MODEL_PBA);
    config_write(m->fn, msix + 2, 0xffff, 2); /* enable and function mask only */
    assert_int_equal(config_read(m->fn, msix + 2, 2), 0xc000 | (PCI_MODEL_VECTORS - 1));
    assert_int_not_equal(msi, 0);
    assert_int_equal(config_read(m->fn, msi + 2, 2), 0x0084); /* 64 bit, 4 vectors */
    assert_int_equal(find_cap(m->fn, 0x01), 0);
    qv_pci_function_free(m->fn);
}

static void test_guest_changes_only_what_is_writable(void **state)
{
    struct pci_model *m = pci_model_new();

    config_write(m->fn, 0, 0, 4);
    assert_int_equal(config_read(m->fn, 0, 4), 0x0e0e1b36);
    config_write(m->fn, 4, 0xffffffff, 4);
    assert_int_equal(config_read(m->fn, 4, 2), 0x0547);
    assert_int_equal(m->commands, 1);
    assert_true(qv_pci_bus_master(m->fn));
    config_write(m->fn, PCI_MODEL_OWN, 0xffffffff, 4);
    assert_int_equal(config_read(m->fn, PCI_MODEL_OWN, 4), 0x1234ff78);
    assert_int_equal(m->config_writes, 1);
    config_write(m->fn, 0x3c, 11, 1);
    assert_int_equal(config_read(m->fn, 0x3c, 1), 11);
    assert_int_equal(m->config_writes, 1);
    qv_pci_function_free(m->fn);
}

static void test_bar_accesses_are_cut_into_aligned_pieces(void **state)
{
    struct pci_model *m = pci_model_new();
    uint8_t buf[16], pattern[11] = "0123456789";

    bar_write(m->fn, PCI_MODEL_REG_SCRATCH, 0x1122334455667788, 8);
    assert_int_equal(m->last_size, 8);
    assert_int_equal(bar_read(m->fn, PCI_MODEL_REG_SCRATCH, 8), 0x1122334455667788);
    assert_true(qv_pci_bar_write(m->fn, 0, PCI_MODEL_SHARED + 3, pattern, sizeof(pattern)));
    assert_memory_equal(m->shared + 3, pattern, sizeof(pattern));
    assert_true(qv_pci_bar_read(m->fn, 0, PCI_MODEL_SHARED + 3, buf, sizeof(pattern)));
    assert_memory_equal(buf, pattern, sizeof(pattern));
    assert_true(qv_pci_bar_read(m->fn, 0, 0, buf, 0));
    qv_pci_function_free(m->fn);
}

static void test_bar_accesses_outside_are_refused(void **state)
{
    struct pci_model *m = pci_model_new();
    uint8_t buf[16] = {0};

    assert_false(qv_pci_bar_read(m->fn, 0, PCI_MODEL_BAR_SIZE, buf, 1));
    assert_false(qv_pci_bar_read(m->fn, 0, PCI_MODEL_BAR_SIZE - 4, buf, 8));
    assert_false(qv_pci_bar_read(m->fn, 0, UINT64_MAX - 3, buf, 8));
    assert_false(qv_pci_bar_write(m->fn, 1, 0, buf, 4));
    assert_false(qv_pci_bar_write(m->fn, 6, 0, buf, 4));
    assert_false(qv_pci_bar_write(m->fn, PCI_MODEL_IO_BAR, 15, buf, 2));
    assert_true(qv_pci_bar_write(m->fn, PCI_MODEL_IO_BAR, 14, buf, 2));
    qv_pci_function_free(m->fn);
}

static void test_msix_table_is_memory_and_pending_bits_are_zero(void **state)
{
    struct pci_model *m = pci_model_new();

    assert_int_equal(bar_read(m->fn, PCI_MODEL_TABLE + 12, 4), 1); /* masked after power-on */
    bar_write(m->fn, PCI_MODEL_TABLE + 16, 0xfee01000, 4);
    bar_write(m->fn, PCI_MODEL_TABLE + 28, 0, 4);
    assert_int_equal(bar_read(m->fn, PCI_MODEL_TABLE + 16, 4), 0xfee01000);
    assert_int_equal(bar_read(m->fn, PCI_MODEL_TABLE + 28, 4), 0);
    bar_write(m->fn, PCI_MODEL_PBA, UINT64_MAX, 8);
    assert_int_equal(bar_read(m->fn, PCI_MODEL_PBA, 8), 0);
    m->last_size = 0;
    bar_read(m->fn, PCI_MODEL_TABLE + 16 * PCI_MODEL_VECTORS, 4); /* behind it: the model's */
    assert_int_equal(m->last_size, 4);
    qv_pci_function_free(m->fn);
}

static void test_messages_reach_their_receiver(void **state)
{
    struct pci_model *m = pci_model_new();
    struct qv_fake_irq irqs[3];
    struct qv_irq *list[3];

    for (unsigned i = 0; i < 3; i++) {
        qv_fake_irq_init(&irqs[i]);
        list[i] = &irqs[i].irq;
    }
    qv_pci_notify(m->fn, 0); /* nobody listens */
    assert_true(qv_pci_set_irqs(m->fn, QV_PCI_IRQ_MSIX, 5, 3, list, NULL));
    assert_int_equal(qv_pci_irq_mode(m->fn), QV_PCI_IRQ_MSIX);
    qv_pci_notify(m->fn, 6);
    qv_pci_notify(m->fn, 0);
    qv_pci_notify(m->fn, PCI_MODEL_VECTORS);
    assert_int_equal(irqs[0].count, 0);
    assert_int_equal(irqs[1].count, 1);
    assert_false(qv_pci_set_irqs(m->fn, QV_PCI_IRQ_MSIX, 6, 3, list, NULL));
    assert_true(qv_pci_set_irqs(m->fn, QV_PCI_IRQ_MSIX, 0, 0, NULL, NULL));
    assert_int_equal(qv_pci_irq_mode(m->fn), QV_PCI_IRQ_INTX);
    qv_pci_notify(m->fn, 6);
    assert_int_equal(irqs[1].count, 1);
    qv_pci_function_free(m->fn);
}

static void test_msi_vectors_wrap_at_those_enabled(void **state)
{
    struct pci_model *m = pci_model_new();
    unsigned msi = find_cap(m->fn, 0x05);
    struct qv_fake_irq irqs[4];
    struct qv_irq *list[4];

    for (unsigned i = 0; i < 4; i++) {
        qv_fake_irq_init(&irqs[i]);
        list[i] = &irqs[i].irq;
    }
    config_write(m->fn, msi + 2, 0x0011, 2); /* two vectors */
    assert_true(qv_pci_set_irqs(m->fn, QV_PCI_IRQ_MSI, 0, 2, list, NULL));
    qv_pci_notify(m->fn, 3);
    assert_int_equal(irqs[1].count, 1);
    config_write(m->fn, msi + 2, 0x0071, 2); /* 128, of which we have 4 */
    assert_true(qv_pci_set_irqs(m->fn, QV_PCI_IRQ_MSI, 0, 4, list, NULL));
    qv_pci_notify(m->fn, 3);
    assert_int_equal(irqs[3].count, 1);
    qv_pci_function_free(m->fn);
}

static void test_pin_raises_once_until_unmasked(void **state)
{
    struct pci_model *m = pci_model_new();
    struct qv_fake_irq irq;
    struct qv_irq *list[1] = {&irq.irq};

    qv_fake_irq_init(&irq);
    qv_pci_intx_set(m->fn, true);
    assert_true(qv_pci_set_irqs(m->fn, QV_PCI_IRQ_INTX, 0, 1, list, NULL));
    assert_int_equal(irq.count, 1); /* the level was on */
    assert_true(config_read(m->fn, 6, 2) & 0x08);
    qv_pci_intx_set(m->fn, true);
    assert_int_equal(irq.count, 1); /* automasked */
    qv_pci_intx_mask(m->fn, false);
    assert_int_equal(irq.count, 2);
    qv_pci_intx_set(m->fn, false);
    qv_pci_intx_mask(m->fn, false);
    assert_int_equal(irq.count, 2);
    assert_false(config_read(m->fn, 6, 2) & 0x08);
    config_write(m->fn, 4, 0x0400, 2); /* the guest disables the pin */
    qv_pci_intx_set(m->fn, true);
    assert_int_equal(irq.count, 2);
    config_write(m->fn, 4, 0, 2);
    assert_int_equal(irq.count, 3);
    qv_pci_function_free(m->fn);
}

/* On an I/O thread, whose timers do not fire while a function of it runs. */
struct early {
    struct qv_work work;
    struct qv_thread *thread;
    struct pci_model *m;
    struct qv_fake_irq irq;
    struct qv_irq *list[1];
    unsigned after_unmask, after_clear, after_new_level, accesses_left;
    struct qv_timer timer;
    sem_t done;
};

/* The guest goes on to touch registers until the pin is told of again, or it has done so often
 * enough. */
static void early_touch(struct qv_timer *timer)
{
    struct early *e = qv_container_of(timer, struct early, timer);

    if (e->irq.count > e->after_new_level || e->accesses_left == 0) {
        qv_pci_function_free(e->m->fn);
        sem_post(&e->done);
        return;
    }
    e->accesses_left--;
    bar_read(e->m->fn, 0, 4);
    qv_timer_arm(timer, 50000);
}

static void early_work(struct qv_work *work)
{
    struct early *e = qv_container_of(work, struct early, work);
    struct qv_pci_function *fn;

    e->m = pci_model_new();
    fn = e->m->fn;
    assert_true(qv_pci_set_irqs(fn, QV_PCI_IRQ_INTX, 0, 1, e->list, NULL));
    qv_pci_intx_set(fn, true);
    qv_pci_intx_unmask_early(fn); /* the handler's first access */
    e->after_unmask = e->irq.count;
    qv_pci_intx_set(fn, false); /* it has dealt with the interrupt */
    e->after_clear = e->irq.count;
    qv_pci_intx_set(fn, true); /* another one */
    e->after_new_level = e->irq.count;
    qv_pci_intx_unmask_early(fn); /* and nobody deals with this one */
    e->timer.fn = early_touch;
    qv_timer_arm(&e->timer, 0);
}

static void test_pin_unmasked_early_is_told_of_again_later(void **state)
{
    struct early e = {.work.fn = early_work, .accesses_left = 100000};

    qv_fake_irq_init(&e.irq);
    e.list[0] = &e.irq.irq;
    sem_init(&e.done, 0, 0);
    e.thread = qv_thread_new("pci", NULL);
    assert_non_null(e.thread);
    qv_thread_post(e.thread, &e.work);
    while (sem_wait(&e.done) != 0) {
    }
    qv_thread_free(e.thread);
    assert_int_equal(e.after_unmask, 1); /* the same level: not at once */
    assert_int_equal(e.after_clear, 1);
    assert_int_equal(e.after_new_level, 2);
    /* Told of again although the guest never stopped to touch registers. */
    assert_int_equal(e.irq.count, 3);
    sem_destroy(&e.done);
}

static void test_pin_is_silent_while_messages_are_on(void **state)
{
    struct pci_model *m = pci_model_new();
    struct qv_fake_irq pin, message;
    struct qv_irq *pins[1] = {&pin.irq}, *messages[1] = {&message.irq};

    qv_fake_irq_init(&pin);
    qv_fake_irq_init(&message);
    assert_true(qv_pci_set_irqs(m->fn, QV_PCI_IRQ_INTX, 0, 1, pins, NULL));
    assert_true(qv_pci_set_irqs(m->fn, QV_PCI_IRQ_MSI, 0, 1, messages, NULL));
    qv_pci_intx_set(m->fn, true);
    assert_int_equal(pin.count, 0);
    assert_true(qv_pci_set_irqs(m->fn, QV_PCI_IRQ_MSI, 0, 0, NULL, NULL));
    assert_int_equal(pin.count, 1);
    qv_pci_function_free(m->fn);
}

static void test_memory_change_ends_when_the_old_map_is_unused(void **state)
{
    struct pci_model *m = pci_model_new();
    struct qv_guest_map *empty;
    struct qv_fake_vm vm;
    unsigned done = 0;

    qv_fake_vm_init(&vm, 0x100000, 1, 1 << 20);
    qv_pci_change_memory(m->fn, vm.map, NULL, count, &done);
    assert_int_equal(done, 1);
    config_write(m->fn, 4, 0x4, 2);
    bar_write(m->fn, PCI_MODEL_REG_ADDR, 0x100000, 8);
    bar_write(m->fn, PCI_MODEL_REG_LEN, 16, 8);
    bar_write(m->fn, PCI_MODEL_REG_COMMAND, PCI_MODEL_FILL, 4);
    assert_int_equal(bar_read(m->fn, PCI_MODEL_REG_STATUS, 4), 0);
    assert_int_equal(vm.memory[15], 0xd5);
    bar_write(m->fn, PCI_MODEL_REG_COMMAND, PCI_MODEL_HOLD, 4);
    assert_true(qv_guest_map_new(NULL, 0, &empty, NULL));
    qv_pci_change_memory(m->fn, empty, NULL, count, &done);
    qv_guest_map_unref(empty);
    assert_int_equal(done, 1); /* a request still uses the old one */
    bar_write(m->fn, PCI_MODEL_REG_COMMAND, PCI_MODEL_FILL, 4);
    assert_int_equal(bar_read(m->fn, PCI_MODEL_REG_STATUS, 4), 1); /* not there any more */
    bar_write(m->fn, PCI_MODEL_REG_COMMAND, PCI_MODEL_RELEASE, 4);
    assert_int_equal(done, 2);
    qv_fake_vm_destroy(&vm);
    qv_pci_function_free(m->fn);
}

static void test_reset_is_as_after_power_on(void **state)
{
    struct pci_model *m = pci_model_new();
    unsigned done = 0;

    config_write(m->fn, 4, 0xffff, 2);
    config_write(m->fn, 0x10, 0xc0000000, 4);
    config_write(m->fn, PCI_MODEL_OWN, 0, 4);
    bar_write(m->fn, PCI_MODEL_TABLE + 12, 0, 4);
    bar_write(m->fn, PCI_MODEL_REG_SCRATCH, 1, 8);
    bar_write(m->fn, PCI_MODEL_REG_COMMAND, PCI_MODEL_HOLD, 4);
    qv_pci_reset(m->fn, count, &done);
    assert_int_equal(done, 0);
    assert_false(qv_pci_bus_master(m->fn));
    pci_model_release(m);
    assert_int_equal(done, 1);
    assert_int_equal(config_read(m->fn, 4, 2), 0);
    assert_int_equal(config_read(m->fn, 0x10, 4), 4);
    assert_int_equal(config_read(m->fn, PCI_MODEL_OWN, 4), 0x12345678);
    assert_int_equal(bar_read(m->fn, PCI_MODEL_TABLE + 12, 4), 1);
    assert_int_equal(bar_read(m->fn, PCI_MODEL_REG_SCRATCH, 8), 0);
    qv_pci_function_free(m->fn);
}

static void test_state_moves_to_another_function(void **state)
{
    struct pci_model *a = pci_model_new(), *b = pci_model_new();
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    unsigned done = 0;

    config_write(a->fn, 4, 0x6, 2);
    config_write(a->fn, 0x10, 0xc0000000, 4);
    bar_write(a->fn, PCI_MODEL_TABLE + 12, 0, 4);
    bar_write(a->fn, PCI_MODEL_REG_SCRATCH, 77, 8);
    qv_pci_quiesce(a->fn, count, &done);
    assert_int_equal(done, 1);
    qv_pci_save(a->fn, bytes);
    assert_true(qv_pci_load(b->fn, bytes->data, bytes->len, NULL));
    assert_int_equal(config_read(b->fn, 4, 2), 6);
    assert_int_equal(config_read(b->fn, 0x10, 4), 0xc0000004);
    assert_int_equal(bar_read(b->fn, PCI_MODEL_TABLE + 12, 4), 0);
    assert_int_equal(bar_read(b->fn, PCI_MODEL_REG_SCRATCH, 8), 77);
    qv_pci_function_free(a->fn);
    qv_pci_function_free(b->fn);
}

static void test_state_that_is_damaged_is_refused(void **state)
{
    struct pci_model *m = pci_model_new();
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    g_autoptr(GError) error = NULL;

    qv_pci_save(m->fn, bytes);
    for (unsigned len = 0; len < bytes->len; len++) {
        assert_false(qv_pci_load(m->fn, bytes->data, len, NULL));
    }
    bytes->data[24] ^= 1; /* the vendor in the copy of configuration space */
    assert_false(qv_pci_load(m->fn, bytes->data, bytes->len, &error));
    assert_true(g_error_matches(error, QV_ERROR, QV_ERROR_CORRUPT));
    qv_pci_function_free(m->fn);
}

static void test_free_destroys_the_model(void **state)
{
    struct pci_model *m = pci_model_new();
    bool destroyed = false;

    m->destroyed = &destroyed;
    qv_pci_function_free(m->fn);
    assert_true(destroyed);
    qv_pci_function_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_identity_shows_in_configuration_space),
        cmocka_unit_test(test_bars_answer_sizing),
        cmocka_unit_test(test_capabilities_are_a_list),
        cmocka_unit_test(test_guest_changes_only_what_is_writable),
        cmocka_unit_test(test_bar_accesses_are_cut_into_aligned_pieces),
        cmocka_unit_test(test_bar_accesses_outside_are_refused),
        cmocka_unit_test(test_msix_table_is_memory_and_pending_bits_are_zero),
        cmocka_unit_test(test_messages_reach_their_receiver),
        cmocka_unit_test(test_msi_vectors_wrap_at_those_enabled),
        cmocka_unit_test(test_pin_raises_once_until_unmasked),
        cmocka_unit_test(test_pin_unmasked_early_is_told_of_again_later),
        cmocka_unit_test(test_pin_is_silent_while_messages_are_on),
        cmocka_unit_test(test_memory_change_ends_when_the_old_map_is_unused),
        cmocka_unit_test(test_reset_is_as_after_power_on),
        cmocka_unit_test(test_state_moves_to_another_function),
        cmocka_unit_test(test_state_that_is_damaged_is_refused),
        cmocka_unit_test(test_free_destroys_the_model),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
