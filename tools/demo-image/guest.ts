// The files of the demo system that are written here: everything else on it comes out of Debian packages.

/** Kernel modules to load, dependencies come by themselves. `crc32c_generic` is asked for by name at run time by ext4. */
export const MODULES = ['ata_piix', 'ata_generic', 'sd_mod', 'sg', 'crc32c_generic', 'ext4'];

/** Those that ata-mode takes out and puts in again with another parameter. */
const ATA_DRIVERS = ['ata_piix', 'ata_generic'];

export const DATA_DEVICE = '/dev/sda2';
export const DATA_FOLDER = '/data';

const KERNEL_PARAMETERS = [
  'console=ttyS0,115200n8',
  'quiet',
  // An emulated PC has no MP table and no machine checks, which the kernel calls errors. rc lets it speak again.
  'loglevel=2',
  // An emulated PC: its clock is what it is, it has no ACPI, and it runs nothing but what its user types.
  'tsc=reliable',
  'no_timer_check',
  'acpi=off',
  'nosmp',
  'mce=off',
  'pnpbios=off',
  'noisapnp',
  'mitigations=off',
  'nokaslr',
  'random.trust_cpu=on',
  // Self-tests of the crypto code, tracing, and certificates for signed modules were two thirds of the kernel's start.
  'cryptomgr.notests',
  'initcall_blacklist=crypto_kdf108_init,init_kprobe_trace,init_uprobe_trace,load_system_certificate_list',
];

export const SYSLINUX_CFG = `SERIAL 0 115200
DEFAULT demo
PROMPT 0
TIMEOUT 0

LABEL demo
  LINUX /vmlinuz
  INITRD /initrd
  APPEND ${KERNEL_PARAMETERS.join(' ')}
`;

export const INITTAB = `::sysinit:/etc/rc
ttyS0::respawn:-/bin/sh
::ctrlaltdel:/sbin/poweroff
::shutdown:/bin/umount -a -r
`;

export const RC = `#!/bin/sh
# Brings the demo system up: devices, modules in their order, the data partition.
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
hostname demo
for module in $(cat /lib/modules/order); do
  insmod "/lib/modules/$module.ko" || echo "rc: cannot load $module"
done
echo 4 > /proc/sys/kernel/printk
/sbin/wait-for ${DATA_DEVICE} && mount -o noatime ${DATA_DEVICE} ${DATA_FOLDER} ||
  echo "rc: no data partition at ${DATA_DEVICE}"
`;

export const WAIT_FOR = `#!/bin/sh
# wait-for FILE: until it exists, at most 60 s (a disk may be probed after its driver is loaded).
tries=0
until [ -e "$1" ]; do
  tries=$((tries + 1))
  [ $tries -gt 600 ] && exit 1
  usleep 100000
done
`;

/** libata takes PIO or DMA when it is loaded, and cannot be told afterwards. */
export const ATA_MODE = `#!/bin/sh
# ata-mode pio|dma: loads libata again so that it drives the disk by PIO only, or by DMA where it can.
case "$1" in
  pio) dma=0 ;;
  dma) dma=7 ;;
  *) echo "usage: ata-mode pio|dma" >&2; exit 2 ;;
esac
cd /
mounted=no
if grep -q ' ${DATA_FOLDER} ' /proc/mounts; then
  umount ${DATA_FOLDER} || exit 1
  mounted=yes
fi
rmmod ${ATA_DRIVERS.join(' ')} libata || exit 1
insmod /lib/modules/libata.ko dma=$dma || exit 1
for module in ${ATA_DRIVERS.join(' ')}; do insmod /lib/modules/$module.ko || exit 1; done
/sbin/wait-for ${DATA_DEVICE} || exit 1
[ $mounted = no ] || mount -o noatime ${DATA_DEVICE} ${DATA_FOLDER}
`;

export const PROFILE = `export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root PS1='demo:\\w# '
cd
[ -e /run/welcome ] || { : > /run/welcome; cat /etc/motd; }
`;

export const MOTD = `
This PC's disk is a Ribbon card. ${DATA_FOLDER} is an ext4 file system on it; what is synced there is in the master image.
Try: hdparm -I /dev/sda    dmesg | grep ata    ata-mode pio
`;

export const DATA_README = `This file system lives on an image server. The PC believes that it is on an IDE disk.
`;
