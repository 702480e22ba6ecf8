/* SPDX-License-Identifier: Apache-2.0 */
/* What tests of NVM commands say. NVMe 1.4, 6. */
#ifndef TESTS_UNIT_NVME_OPCODES_H
#define TESTS_UNIT_NVME_OPCODES_H

enum { FLUSH = 0, WRITE = 1, READ = 2, COMPARE = 5, ZEROES = 8, DSM = 9, VERIFY = 12 };

#define DNR 0x4000u    /* in a status: do not retry */
#define FUA (1u << 30) /* in dword 12 */

#endif
