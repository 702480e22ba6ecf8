/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What we use of PKCS#11 3.2 (OASIS, "PKCS #11 Specification Version 3.2"), written down from the
 * standard. Structures are in the platform's natural layout, as on all Unix systems; CK_ULONG is
 * unsigned long. Names are the standard's.
 */
#ifndef QV_KEY_CRYPTOKI_H
#define QV_KEY_CRYPTOKI_H

#include <stdint.h>

typedef unsigned long ck_ulong;
typedef ck_ulong ck_rv;
typedef unsigned char ck_byte;

struct ck_version {
    ck_byte major, minor;
};

struct ck_attribute {
    ck_ulong type;
    void *value;
    ck_ulong len;
};

struct ck_mechanism {
    ck_ulong mechanism;
    void *parameter;
    ck_ulong parameter_len;
};

struct ck_interface {
    char *name;
    void *function_list;
    ck_ulong flags;
};

struct ck_initialize_args {
    void *create_mutex, *destroy_mutex, *lock_mutex, *unlock_mutex;
    ck_ulong flags;
    void *reserved;
};

struct ck_token_info {
    ck_byte label[32], manufacturer[32], model[16], serial[16];
    ck_ulong flags, limits[10]; /* session counts, PIN lengths, memory */
    struct ck_version hardware, firmware;
    ck_byte utc_time[16];
};

/* A function list: its version, then pointers in the order of the standard's CK_FUNCTION_LIST_3_2
 * (5.2): 68 functions of 2.40, 24 of 3.0, then those of 3.2. */
struct ck_functions {
    struct ck_version version;
    void (*function[104])(void);
};

enum ck_function {
    CK_F_INITIALIZE = 0,
    CK_F_FINALIZE = 1,
    CK_F_GET_SLOT_LIST = 4,
    CK_F_GET_TOKEN_INFO = 6,
    CK_F_GET_MECHANISM_LIST = 7,
    CK_F_OPEN_SESSION = 12,
    CK_F_CLOSE_SESSION = 13,
    CK_F_LOGIN = 18,
    CK_F_DESTROY_OBJECT = 22,
    CK_F_GET_ATTRIBUTE_VALUE = 24,
    CK_F_FIND_OBJECTS_INIT = 26,
    CK_F_FIND_OBJECTS = 27,
    CK_F_FIND_OBJECTS_FINAL = 28,
    CK_F_GENERATE_KEY_PAIR = 59,
    CK_F_ENCAPSULATE_KEY = 92,
    CK_F_DECAPSULATE_KEY = 93,
};

#define CKR_OK                           0x0UL
#define CKR_USER_ALREADY_LOGGED_IN       0x100UL
#define CKR_CRYPTOKI_ALREADY_INITIALIZED 0x191UL
#define CKR_PIN_INCORRECT                0xA0UL
#define CKR_PIN_LOCKED                   0xA4UL

#define CKF_OS_LOCKING_OK  0x2UL
#define CKF_RW_SESSION     0x2UL
#define CKF_SERIAL_SESSION 0x4UL
#define CKU_USER           1UL

#define CKO_PUBLIC_KEY  2UL
#define CKO_PRIVATE_KEY 3UL
#define CKO_SECRET_KEY  4UL

#define CKK_GENERIC_SECRET 0x10UL
#define CKK_ML_KEM         0x49UL

#define CKM_ML_KEM_KEY_PAIR_GEN 0x0FUL
#define CKM_ML_KEM              0x17UL

#define CKA_CLASS         0x0UL
#define CKA_TOKEN         0x1UL
#define CKA_PRIVATE       0x2UL
#define CKA_LABEL         0x3UL
#define CKA_VALUE         0x11UL
#define CKA_KEY_TYPE      0x100UL
#define CKA_ID            0x102UL
#define CKA_SENSITIVE     0x103UL
#define CKA_VALUE_LEN     0x161UL
#define CKA_EXTRACTABLE   0x162UL
#define CKA_PARAMETER_SET 0x61DUL
#define CKA_ENCAPSULATE   0x633UL
#define CKA_DECAPSULATE   0x634UL

/* CKP_ML_KEM_512, _768, _1024 */
#define CKP_ML_KEM_512  1UL
#define CKP_ML_KEM_768  2UL
#define CKP_ML_KEM_1024 3UL

#endif
