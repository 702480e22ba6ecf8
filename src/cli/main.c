/* SPDX-License-Identifier: Apache-2.0 */
#include <locale.h>
#include <signal.h>
#include <sys/stat.h>

#include "cli/cli.h"

int main(int argc, char **argv)
{
    setlocale(LC_CTYPE, "");
    umask(077);               /* images, keys and state are their owner's only */
    signal(SIGPIPE, SIG_IGN); /* a closed pipe is an error that finish() reports */
    return cli_main(argc, argv);
}
