# SPDX-License-Identifier: Apache-2.0
"""Small disks that firmware boots: each prints MESSAGE on the console and stands still."""
import struct

MESSAGE = "booted from QuantaVirt"

# Prints through the BIOS, which the serial line shows too, then halts.
BOOT_SECTOR = bytes([
    0x31, 0xc0,              # xor ax, ax
    0x8e, 0xd8,              # mov ds, ax
    0xbe, 0x18, 0x7c,        # mov si, message
    0xac,                    # next: lodsb
    0x08, 0xc0,              # or al, al
    0x74, 0x09,              # jz done
    0xb4, 0x0e,              # mov ah, 0x0e  (teletype)
    0xbb, 0x07, 0x00,        # mov bx, 7
    0xcd, 0x10,              # int 0x10
    0xeb, 0xf2,              # jmp next
    0xf4,                    # done: hlt
    0xeb, 0xfd,              # jmp done
]) + MESSAGE.encode() + b"\r\n\0"

# An EFI application: SystemTable->ConOut->OutputString(ConOut, message), then a loop.
EFI_CODE = bytes([
    0x48, 0x83, 0xec, 0x28,              # sub rsp, 0x28
    0x48, 0x8b, 0x4a, 0x40,              # mov rcx, [rdx + 64]
    0x48, 0x8d, 0x15, 5, 0, 0, 0,        # lea rdx, [rip + 5]
    0xff, 0x51, 0x08,                    # call [rcx + 8]
    0xeb, 0xfe,                          # loop: jmp loop
]) + (MESSAGE + "\r\n\0").encode("utf-16-le")


def efi_program():
    """The application as a PE32+ file with one section."""
    dos = b"MZ".ljust(0x3c, b"\0") + struct.pack("<I", 0x40)
    coff = b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, 1, 0, 0, 0, 0xf0, 0x0022)
    optional = struct.pack("<HBBIIIII", 0x20b, 0, 0, 0x200, 0, 0, 0x1000, 0x1000)
    optional += struct.pack("<QII", 0, 0x1000, 0x200) + struct.pack("<HHHHHH", 0, 0, 0, 0, 0, 0)
    optional += struct.pack("<IIII", 0, 0x2000, 0x200, 0) + struct.pack("<HH", 10, 0)
    optional += struct.pack("<QQQQII", 0x10000, 0x10000, 0x10000, 0x10000, 0, 16) + bytes(128)
    section = b".text\0\0\0" + struct.pack("<IIIIIIHHI", len(EFI_CODE), 0x1000, 0x200, 0x200, 0, 0, 0, 0, 0x60000020)
    return (dos + coff + optional + section).ljust(0x200, b"\0") + EFI_CODE.ljust(0x200, b"\0")


def _dir_entry(name, attributes, cluster, size=0):
    return name + struct.pack("<BBBHHHHHHHI", attributes, 0, 0, 0, 0x21, 0x21, 0, 0, 0x21, cluster, size)


def _fat_volume(program):
    """A FAT12 volume of 1 MiB with /EFI/BOOT/BOOTX64.EFI."""
    boot = b"\xeb\x3c\x90MSDOS5.0" + struct.pack("<HBHBHHBHHHII", 512, 1, 1, 2, 512, 2048, 0xf8, 6, 63, 16, 64, 0)
    boot = (boot + struct.pack("<BBBI", 0x80, 0, 0x29, 1) + b"EFI        FAT12   ").ljust(510, b"\0") + b"\x55\xaa"
    chain = [0xff8, 0xfff, 0xfff, 0xfff, 5, 0xfff]  # clusters 2 and 3: folders; 4 and 5: the program
    fat = b"".join(struct.pack("<I", a | b << 12)[:3] for a, b in zip(chain[::2], chain[1::2]))
    root = _dir_entry(b"EFI        ", 0x10, 2)
    folder = [_dir_entry(b".          ", 0x10, c) + _dir_entry(b"..         ", 0x10, up) for c, up in ((2, 0), (3, 2))]
    folder[0] += _dir_entry(b"BOOT       ", 0x10, 3)
    folder[1] += _dir_entry(b"BOOTX64 EFI", 0x20, 4, len(program))
    volume = boot + 2 * fat.ljust(6 * 512, b"\0") + root.ljust(512 * 32, b"\0")
    return volume + b"".join(f.ljust(512, b"\0") for f in folder) + program


def make_bios(path):
    """Makes the first sector of the image file `path` a boot sector."""
    with open(path, "r+b") as f:
        f.write(BOOT_SECTOR.ljust(510, b"\0") + b"\x55\xaa")


def make_uefi(path):
    """Gives the image file `path` (2 MiB at least) an EFI system partition with a program to boot."""
    entry = struct.pack("<B3sB3sII", 0, b"\xff" * 3, 0xef, b"\xff" * 3, 64, 2048)
    with open(path, "r+b") as f:
        f.write((bytes(446) + entry).ljust(510, b"\0") + b"\x55\xaa")
        f.seek(64 * 512)
        f.write(_fat_volume(efi_program()))
