// lwIP for a card: one thread, no operating system, IPv4, a few TCP streams, DHCP or static addresses.
#ifndef RIBBON_LWIPOPTS_H
#define RIBBON_LWIPOPTS_H

#define NO_SYS 1
#define LWIP_NETCONN 0
#define LWIP_SOCKET 0
#define SYS_LIGHTWEIGHT_PROT 0 // all of lwIP runs in the main loop, none of it in interrupts

#define LWIP_IPV4 1
#define LWIP_IPV6 0
#define LWIP_TCP 1
#define LWIP_UDP 1
#define LWIP_DHCP 1
#define LWIP_ICMP 1
#define LWIP_RAW 0
#define LWIP_DNS 0
#define LWIP_IGMP 0
#define IP_REASSEMBLY 1
#define IP_REASS_MAX_PBUFS 32
#define IP_FRAG 1
#define ARP_QUEUEING 1
#define DHCP_DOES_ARP_CHECK 0 // half a second less until the disk is there
#define LWIP_DHCP_DOES_ACD_CHECK 0
#define LWIP_NETIF_STATUS_CALLBACK 1
#define LWIP_NETIF_LINK_CALLBACK 1
#define LWIP_NETIF_HOSTNAME 1

// 125 MB/s * 2 ms on a local gigabit, 1.5 Mbit/s * 1.4 s on a slow line: 256 KiB in flight serve both.
#define TCP_MSS 1460
#define LWIP_WND_SCALE 1
#define TCP_RCV_SCALE 3
#define TCP_WND (176 * TCP_MSS)
#define TCP_SND_BUF (176 * TCP_MSS)
#define TCP_SNDLOWAT (16 * TCP_MSS)
#define TCP_SND_QUEUELEN ((4 * TCP_SND_BUF) / TCP_MSS)
#define TCP_QUEUE_OOSEQ 1
#define TCP_OOSEQ_MAX_PBUFS 128
#define MEMP_NUM_TCP_PCB 12
#define MEMP_NUM_TCP_SEG TCP_SND_QUEUELEN
#define MEMP_NUM_PBUF 512
#define MEMP_NUM_SYS_TIMEOUT 16

// lwIP's own heap holds copies of what is sent; the pool holds what was received. A flood fills the pool and no more: frames
// are then dropped before they are taken from the ring.
#define MEM_ALIGNMENT 8
#define MEM_SIZE (768 * 1024)
#define PBUF_POOL_SIZE 288
#define PBUF_POOL_BUFSIZE 1536
#define ETH_PAD_SIZE 0

// The Ethernet MAC computes and checks IP, TCP and UDP checksums; ICMP stays with the processor.
#define CHECKSUM_GEN_IP 0
#define CHECKSUM_GEN_UDP 0
#define CHECKSUM_GEN_TCP 0
#define CHECKSUM_CHECK_IP 0
#define CHECKSUM_CHECK_UDP 0
#define CHECKSUM_CHECK_TCP 0
#define CHECKSUM_GEN_ICMP 1
#define CHECKSUM_CHECK_ICMP 1

#define LWIP_STATS 0
#define LWIP_PROVIDE_ERRNO 1

#endif
