/* SPDX-License-Identifier: Apache-2.0 */
/*
 * powerbutton - runs inside the test guest: waits for the ACPI power button, syncs, powers off
 *
 * Debian's cloud kernel has no evdev, so the button is heard where the kernel also tells of it: the
 * generic netlink family "acpi_event" (Linux drivers/acpi/event.c). Linked statically.
 */
#include <linux/genetlink.h>
#include <linux/netlink.h>
#include <stdio.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <unistd.h>

#define FAMILY "acpi_event"

static const struct nlattr *find(const char *at, const char *end, int type)
{
    while (end - at >= NLA_HDRLEN) {
        const struct nlattr *attr = (const void *)at;

        if (attr->nla_len < NLA_HDRLEN || at + attr->nla_len > end) {
            return NULL;
        }
        if ((attr->nla_type & NLA_TYPE_MASK) == type) {
            return attr;
        }
        at += NLA_ALIGN(attr->nla_len);
    }
    return NULL;
}

static const struct nlattr *inside(const struct nlattr *attr, int type)
{
    const char *at = (const char *)attr;

    return attr == NULL ? NULL : find(at + NLA_HDRLEN, at + attr->nla_len, type);
}

/* The id of the family's one multicast group; 0: not found. */
static unsigned group_id(int fd)
{
    struct {
        struct nlmsghdr nl;
        struct genlmsghdr genl;
        struct nlattr attr;
        char name[NLA_ALIGN(sizeof(FAMILY))];
    } ask = {
        .nl = {.nlmsg_len = sizeof(ask), .nlmsg_type = GENL_ID_CTRL, .nlmsg_flags = NLM_F_REQUEST},
        .genl = {.cmd = CTRL_CMD_GETFAMILY, .version = 1},
        .attr = {.nla_len = NLA_HDRLEN + sizeof(FAMILY), .nla_type = CTRL_ATTR_FAMILY_NAME},
        .name = FAMILY,
    };
    static _Alignas(8) char buf[8192];
    const struct nlattr *groups, *id;
    unsigned value = 0;
    ssize_t n;

    if (send(fd, &ask, sizeof(ask), 0) < 0 || (n = recv(fd, buf, sizeof(buf), 0)) < 0) {
        return 0;
    }
    groups = find(buf + NLMSG_HDRLEN + GENL_HDRLEN, buf + n, CTRL_ATTR_MCAST_GROUPS);
    id = inside(inside(groups, 1), CTRL_ATTR_MCAST_GRP_ID); /* groups are numbered from 1 */
    if (id != NULL) {
        memcpy(&value, (const char *)id + NLA_HDRLEN, sizeof(value));
    }
    return value;
}

int main(void)
{
    struct sockaddr_nl self = {.nl_family = AF_NETLINK};
    int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_GENERIC);
    unsigned group;
    char event[4096];

    if (fd < 0 || bind(fd, (struct sockaddr *)&self, sizeof(self)) < 0 ||
        (group = group_id(fd)) == 0 ||
        setsockopt(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof(group)) < 0) {
        perror("powerbutton");
        return 1;
    }
    puts("powerbutton: waiting");
    fflush(stdout);
    if (recv(fd, event, sizeof(event), 0) < 0) {
        return 1;
    }
    puts("powerbutton: pressed");
    fflush(stdout);
    sync();
    reboot(RB_POWER_OFF);
    return 1;
}
