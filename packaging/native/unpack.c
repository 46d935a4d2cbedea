/* The frames hold cpio archives (newc): directories, regular files and symbolic links, parents first. What is read is
 * handled as it comes, so no more memory is touched than zstd's window. */
#define _GNU_SOURCE
#include "unpack.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "zstd.h"

enum { BUFFER_BYTES = 1 << 17, MAX_NAME_BYTES = 4096, HEADER_BYTES = 110 };

static const char DAMAGED[] = "the executable is damaged";
static const char DIFFERS[] = "";

struct reader {
    ZSTD_DStream *stream;
    ZSTD_inBuffer in;
    unsigned char *buffer; /* BUFFER_BYTES; from start to end is not yet taken */
    size_t start, end;
    size_t offset; /* in the archive, for its padding */
};

struct entry {
    mode_t mode;
    size_t bytes;
    char name[MAX_NAME_BYTES];
};

typedef const char *handle_entry(struct reader *reader, const struct entry *entry, int directory_fd);

/* What is there of up to `wanted` bytes, at least one; 0 at the end of the payload or where it is damaged. */
static size_t take(struct reader *reader, size_t wanted, const unsigned char **found)
{
    size_t got;

    while (reader->start == reader->end) {
        ZSTD_outBuffer out = {reader->buffer, BUFFER_BYTES, 0};
        bool had_input = reader->in.pos < reader->in.size;
        size_t left = ZSTD_decompressStream(reader->stream, &out, &reader->in);

        if (ZSTD_isError(left) || (!had_input && out.pos == 0))
            return 0;
        reader->start = 0;
        reader->end = out.pos;
    }
    got = reader->end - reader->start;
    got = got < wanted ? got : wanted;
    *found = reader->buffer + reader->start;
    reader->start += got;
    reader->offset += got;
    return got;
}

static bool read_exactly(struct reader *reader, void *target, size_t bytes)
{
    unsigned char *to = target;
    const unsigned char *piece;
    size_t got;

    for (; bytes > 0; bytes -= got, to += got) {
        if ((got = take(reader, bytes, &piece)) == 0)
            return false;
        memcpy(to, piece, got);
    }
    return true;
}

static bool skip_padding(struct reader *reader)
{
    char padding[4];

    return read_exactly(reader, padding, -reader->offset & 3);
}

static size_t field(const char *header, int number)
{
    char digits[9] = {0};

    memcpy(digits, header + 6 + 8 * number, 8);
    return strtoul(digits, NULL, 16);
}

/* Relative, and never upwards: it is our own archive, but it is written by whoever runs this. */
static bool is_inside(const char *name)
{
    return name[0] != '/' && strstr(name, "..") == NULL;
}

static bool read_entry(struct reader *reader, struct entry *entry)
{
    char header[HEADER_BYTES];
    size_t name_bytes;

    if (!read_exactly(reader, header, sizeof header) || memcmp(header, "070701", 6) != 0)
        return false;
    entry->mode = (mode_t)field(header, 1);
    entry->bytes = field(header, 6);
    name_bytes = field(header, 11);
    if (name_bytes < 2 || name_bytes > sizeof entry->name || !read_exactly(reader, entry->name, name_bytes))
        return false;
    return entry->name[name_bytes - 1] == 0 && is_inside(entry->name) && skip_padding(reader);
}

static const char *each_entry(struct reader *reader, int directory_fd, handle_entry *handle)
{
    struct entry entry;
    const char *problem;

    for (;;) {
        if (!read_entry(reader, &entry))
            return errno = 0, DAMAGED;
        if (strcmp(entry.name, "TRAILER!!!") == 0)
            return NULL;
        errno = 0;
        if ((problem = handle(reader, &entry, directory_fd)) != NULL)
            return problem;
        if (!skip_padding(reader))
            return errno = 0, DAMAGED;
    }
}

static const char *walk_frame(const unsigned char *frame, size_t bytes, int directory_fd, handle_entry *handle)
{
    struct reader reader = {
        .stream = ZSTD_createDStream(), .in = {frame, bytes, 0}, .buffer = malloc(BUFFER_BYTES)};
    const char *problem = "there is not enough memory";

    if (reader.stream != NULL && reader.buffer != NULL)
        problem = each_entry(&reader, directory_fd, handle);
    ZSTD_freeDStream(reader.stream);
    free(reader.buffer);
    return problem;
}

/* What a frame's own process says by its status: one of these, or that it died. */
static const char *const TOLD[] = {NULL, DAMAGED, DIFFERS, "a part of it cannot be unpacked"};

static int told(const char *problem)
{
    int number = 0;

    while (number < 3 && problem != TOLD[number])
        number++;
    return number < 3 ? number : 3 + (errno & 0x7f); /* errno goes with it */
}

static const char *wait_for(pid_t child)
{
    int status;

    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            return TOLD[3];
    status = WIFEXITED(status) ? WEXITSTATUS(status) : 3;
    errno = status > 3 ? status - 3 : 0;
    return TOLD[status < 3 ? status : 3];
}

/* Every frame in a process of its own but the last, which waits for the others. */
static const char *walk(const unsigned char *payload, size_t bytes, int directory_fd, handle_entry *handle)
{
    size_t frame = ZSTD_findFrameCompressedSize(payload, bytes);
    const char *problem, *others;
    pid_t child;

    if (ZSTD_isError(frame) || frame == 0)
        return errno = 0, DAMAGED;
    if (frame == bytes)
        return walk_frame(payload, frame, directory_fd, handle);
    if ((child = fork()) == 0)
        _exit(told(walk_frame(payload, frame, directory_fd, handle)));
    problem = child > 0 ? NULL : walk_frame(payload, frame, directory_fd, handle);
    others = walk(payload + frame, bytes - frame, directory_fd, handle);
    if (child > 0) {
        int why = errno;
        problem = wait_for(child);
        errno = others != NULL ? why : errno;
    }
    return others != NULL ? others : problem;
}

static const char *read_target(struct reader *reader, const struct entry *entry, char *target)
{
    if (entry->bytes >= MAX_NAME_BYTES || !read_exactly(reader, target, entry->bytes))
        return errno = 0, DAMAGED;
    target[entry->bytes] = 0;
    return NULL;
}

static const char *write_file(struct reader *reader, const struct entry *entry, int directory_fd)
{
    int fd = openat(directory_fd, entry->name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, entry->mode & 0777);
    size_t left = entry->bytes, got;
    const unsigned char *piece;
    ssize_t written;

    if (fd < 0)
        return "a file of it cannot be made";
    while (left > 0) {
        if ((got = take(reader, left, &piece)) == 0) {
            close(fd);
            return errno = 0, DAMAGED;
        }
        left -= got;
        for (; got > 0; got -= (size_t)written, piece += written)
            if ((written = write(fd, piece, got)) <= 0) {
                close(fd);
                return "a file of it cannot be written";
            }
    }
    return close(fd) == 0 ? NULL : "a file of it cannot be written";
}

static const char *write_entry(struct reader *reader, const struct entry *entry, int directory_fd)
{
    char target[MAX_NAME_BYTES];
    const char *problem;

    if (S_ISDIR(entry->mode)) /* which may be in more than one frame */
        return mkdirat(directory_fd, entry->name, 0700) == 0 || errno == EEXIST ? NULL : "a directory of it cannot be made";
    if (S_ISREG(entry->mode))
        return write_file(reader, entry, directory_fd);
    if ((problem = read_target(reader, entry, target)) != NULL)
        return problem;
    return symlinkat(target, directory_fd, entry->name) == 0 ? NULL : "a link of it cannot be made";
}

static const char *compare_file(struct reader *reader, const struct entry *entry, int directory_fd)
{
    int fd = openat(directory_fd, entry->name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    unsigned char *there = malloc(BUFFER_BYTES);
    const char *problem = fd < 0 || there == NULL ? DIFFERS : NULL;
    size_t left = entry->bytes, got;
    const unsigned char *piece;

    for (; problem == NULL && left > 0; left -= got) {
        if ((got = take(reader, left, &piece)) == 0)
            problem = DAMAGED;
        else if (read(fd, there, got) != (ssize_t)got || memcmp(there, piece, got) != 0)
            problem = DIFFERS;
    }
    free(there);
    if (fd >= 0)
        close(fd);
    errno = 0;
    return problem;
}

static const char *compare_entry(struct reader *reader, const struct entry *entry, int directory_fd)
{
    char target[MAX_NAME_BYTES], there[MAX_NAME_BYTES];
    const char *problem;
    struct stat status;
    ssize_t bytes;

    if (S_ISDIR(entry->mode))
        return fstatat(directory_fd, entry->name, &status, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(status.st_mode) ? NULL : DIFFERS;
    if (S_ISREG(entry->mode))
        return compare_file(reader, entry, directory_fd);
    if ((problem = read_target(reader, entry, target)) != NULL)
        return problem;
    bytes = readlinkat(directory_fd, entry->name, there, sizeof there);
    return bytes == (ssize_t)entry->bytes && memcmp(there, target, (size_t)bytes) == 0 ? NULL : DIFFERS;
}

const char *unpack_tree(const unsigned char *payload, size_t bytes, int directory_fd)
{
    return walk(payload, bytes, directory_fd, write_entry);
}

const char *compare_tree(const unsigned char *payload, size_t bytes, int directory_fd)
{
    return walk(payload, bytes, directory_fd, compare_entry);
}
