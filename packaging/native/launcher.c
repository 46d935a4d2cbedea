/* dist/biruda: a small static program with the daemon's files behind it.
 *
 * The files are unpacked once, into a directory named after their content, and started from there by the C library that
 * lies among them: nothing of the system is needed. The same program without a payload stands in that directory as
 * `biruda`, so what runs can start itself again although this file was moved or replaced meanwhile. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cachedir.h"
#include "unpack.h"

#ifndef LOADER_NAME
#error "LOADER_NAME: what the C library calls its loader, by which PyInstaller's bootloader knows it"
#endif
#define LIBRARIES "_internal"
#define LOADER LIBRARIES "/" LOADER_NAME
#define PROGRAM "program"

enum { KEY_DIGITS = 32, CANNOT_START = 125 };

/* The last bytes of an executable with a payload. */
struct trailer {
    unsigned char start[8], bytes[8]; /* little-endian */
    char key[KEY_DIGITS];
    char magic[16];
};
static const char MAGIC[16] = "biruda payload\n";

struct payload {
    const unsigned char *data;
    size_t bytes;
    char key[KEY_DIGITS + 1];
};

static int refuse(const char *where, const char *what, const char *hint)
{
    fprintf(stderr, "biruda: %s%s%s%s%s\n", where, *where ? ": " : "", what, errno ? ": " : "", errno ? strerror(errno) : "");
    if (hint != NULL)
        fprintf(stderr, "hint: %s\n", hint);
    return CANNOT_START;
}

/* Where this program lies, also without /proc; false with errno set. */
static bool find_self(char path[PATH_MAX])
{
    const char *started_as = (const char *)getauxval(AT_EXECFN);
    ssize_t bytes = readlink("/proc/self/exe", path, PATH_MAX - 1);

    if (bytes > 0) {
        path[bytes] = 0;
        return true;
    }
    if (started_as == NULL)
        return errno = ENOENT, false;
    return realpath(started_as, path) != NULL;
}

static uint64_t number(const unsigned char bytes[8])
{
    uint64_t value = 0;

    for (int i = 7; i >= 0; i--)
        value = value << 8 | bytes[i];
    return value;
}

/* False with errno 0 where there is none. */
static bool find_payload(const char *path, struct payload *payload)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    struct trailer trailer;
    uint64_t start, bytes, room;
    unsigned char *data;

    if (fd < 0)
        return false;
    if (fstat(fd, &status) != 0 || status.st_size < (off_t)sizeof trailer
        || pread(fd, &trailer, sizeof trailer, status.st_size - (off_t)sizeof trailer) != (ssize_t)sizeof trailer
        || memcmp(trailer.magic, MAGIC, sizeof MAGIC) != 0) {
        close(fd);
        return errno = 0, false;
    }
    start = number(trailer.start);
    bytes = number(trailer.bytes);
    room = (uint64_t)status.st_size - sizeof trailer;
    data = MAP_FAILED;
    if (start <= room && bytes <= room - start)
        data = mmap(NULL, (size_t)room, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (data == MAP_FAILED)
        return errno = errno ? errno : EBADMSG, false;
    memcpy(payload->key, trailer.key, KEY_DIGITS);
    payload->key[KEY_DIGITS] = 0;
    payload->data = data + start;
    payload->bytes = (size_t)bytes;
    return true;
}

static char *joined(const char *directory, const char *name)
{
    char *path = NULL;

    return asprintf(&path, "%s/%s", directory, name) < 0 ? NULL : path;
}

/* Private to PyInstaller's bootloader: with these it neither looks for its files nor starts itself once more. */
static bool set_environment(const char *program, const char *libraries)
{
    return unsetenv("PYINSTALLER_RESET_ENVIRONMENT") == 0 && setenv("_PYI_ARCHIVE_FILE", program, 1) == 0
           && setenv("_PYI_APPLICATION_HOME_DIR", libraries, 1) == 0 && setenv("_PYI_PARENT_PROCESS_LEVEL", "0", 1) == 0
           && setenv("_PYI_LINUX_PROCESS_NAME", "biruda", 1) == 0;
}

static int start_from(const char *directory, int argc, char **argv)
{
    char *loader = joined(directory, LOADER), *libraries = joined(directory, LIBRARIES);
    char *program = joined(directory, PROGRAM), *own = joined(directory, "biruda");
    char **words = calloc((size_t)argc + 8, sizeof *words);
    int count = 0;

    errno = ENOMEM;
    if (!loader || !libraries || !program || !own || !words || !set_environment(program, libraries))
        return refuse("", "cannot start", NULL);
    words[count++] = own;
    words[count++] = "--inhibit-cache";
    words[count++] = "--library-path";
    words[count++] = libraries;
    words[count++] = program;
    for (int i = 1; i < argc; i++)
        words[count++] = argv[i];
    execv(loader, words);
    return refuse(loader, "cannot be started", "remove its directory: it is made again");
}

int main(int argc, char **argv)
{
    char self[PATH_MAX], directory[PATH_MAX], *slash;
    struct payload payload;
    const char *problem;

    if (!find_self(self))
        return refuse(argc ? argv[0] : "", "cannot find its own file", "start it by its path");
    if (find_payload(self, &payload)) {
        struct tree tree = {.data = payload.data, .bytes = payload.bytes, .key = payload.key, .origin = self};

        if ((problem = cached_tree(&tree, directory)) != NULL)
            return refuse(directory, problem, "name a directory of yours for its files with BIRUDA_CACHE");
        return start_from(directory, argc, argv);
    }
    if (errno != 0)
        return refuse(self, "cannot be read", NULL);
    slash = strrchr(self, '/');
    *slash = 0;
    return start_from(self, argc, argv);
}
