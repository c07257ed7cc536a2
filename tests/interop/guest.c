/* The only program of the guest, a User Mode Linux kernel: mounts images with Linux's own qnx6 driver, and writes down what
 * it finds there.
 *
 * It judges nothing: names, attributes and contents go to the host as they were read. The environment variable `exchange`
 * names a folder of the host with the file `images`, one path inside the folder per line, and the file `found`, which is
 * written: for each image a line "image", then one record for each object, then a line "end"; after the last one "done".
 *
 *     object MODE UID GID SIZE MTIME ATIME CTIME INODE LINKS BLOCKS MAJOR MINOR PATHLENGTH DATALENGTH\n PATH DATA
 *     error ERRNO STAGE PATHLENGTH\n PATH
 *
 * DATA is the target of a symbolic link, or a file's contents; of a file of more than WHOLE_MAX bytes only the windows that
 * `windows` chooses (sampling.py chooses the same). What lies behind the 2^31 - 1 bytes that read(2) reaches is read from the
 * block device, where the driver says (FIBMAP) that it lies.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#define WHOLE_MAX (1 << 20)
#define WINDOW_BLOCKS 8
#define SPREAD 12
#define WINDOWS_MAX (SPREAD + 8)
#define READ_MAX 0x7fffffffLL
#define REACH 0x7fffffffLL /* FIBMAP knows no later block of a file */
#define PATH_ROOM (1 << 20)

static FILE *found;
static char path[PATH_ROOM];
static size_t path_length;
static long long block_size;
static int device;

static void report(const char *stage) {
    fprintf(found, "error %d %s %zu\n", errno, stage, path_length);
    fwrite(path, 1, path_length, found);
}

/* First blocks of the windows of a file of `blocks` blocks, in rising order; where they overlap, twice read is twice written. */
static int windows(long long blocks, long long *starts) {
    long long reach = 16, last = (blocks < REACH ? blocks : REACH) - WINDOW_BLOCKS;
    int count = 0, i, j;
    for (i = 0; i < 4; i++, reach *= block_size / 4) /* the last leaves of each level and the first of the next */
        starts[count++] = reach - WINDOW_BLOCKS / 2;
    for (i = 0; i < SPREAD; i++)
        starts[count++] = last / (SPREAD - 1) * i;
    starts[count++] = last;
    for (i = 0; i < count; i++)
        if (starts[i] > last)
            starts[i] = last;
    for (i = 1; i < count; i++)
        for (j = i; j > 0 && starts[j - 1] > starts[j]; j--) {
            long long other = starts[j];
            starts[j] = starts[j - 1];
            starts[j - 1] = other;
        }
    return count;
}

/* Reads a block of a file from the device; a block number that FIBMAP cannot say counts as a failure. */
static int read_raw(int file, char *to, long long offset, size_t length) {
    long long index = offset / block_size;
    int block = (int)index;
    if (index != block) {
        errno = EOVERFLOW;
        return -1;
    }
    if (ioctl(file, FIBMAP, &block) < 0)
        return -1;
    if (pread(device, to, length, block * block_size) != (ssize_t)length)
        return -1;
    return 0;
}

static int read_range(int file, char *to, long long offset, long long length) {
    while (length > 0) {
        if (offset + block_size > READ_MAX) {
            long long take = length < block_size ? length : block_size;
            if (read_raw(file, to, offset, take) < 0)
                return -1;
            to += take, offset += take, length -= take;
        } else {
            long long room = (READ_MAX - offset) / block_size * block_size;
            ssize_t got = pread(file, to, length < room ? length : room, offset);
            if (got == 0)
                errno = ENODATA;
            if (got <= 0)
                return -1;
            to += got, offset += got, length -= got;
        }
    }
    return 0;
}

/* The contents of a file, in memory that the caller frees; NULL with errno set. */
static char *contents(int folder, const char *name, long long size, size_t *length) {
    long long starts[WINDOWS_MAX];
    int count, i, failed = 0;
    char *data;
    int file = openat(folder, name, O_RDONLY | O_LARGEFILE);
    if (file < 0)
        return NULL;
    if (size <= WHOLE_MAX) {
        *length = size;
        data = malloc(size + 1);
        failed = read_range(file, data, 0, size) < 0;
        if (!failed && pread(file, data + size, 1, size) != 0) { /* nothing may be behind the end */
            errno = EFBIG;
            failed = 1;
        }
    } else {
        count = windows((size + block_size - 1) / block_size, starts);
        *length = 0;
        data = malloc(WINDOWS_MAX * WINDOW_BLOCKS * block_size);
        for (i = 0; i < count && !failed; i++) {
            long long offset = starts[i] * block_size, take = WINDOW_BLOCKS * block_size;
            if (take > size - offset)
                take = size - offset;
            failed = read_range(file, data + *length, offset, take) < 0;
            *length += take;
        }
    }
    close(file);
    if (failed) {
        free(data);
        return NULL;
    }
    return data;
}

static void look_at(int folder, const char *name);

static void list(int folder, const char *name) {
    static char buffers[64][65536];
    static int depth;
    int file = openat(folder, name, O_RDONLY | O_DIRECTORY);
    long got;
    if (file < 0 || depth == 64) {
        report("opendir");
        return;
    }
    char *buffer = buffers[depth++];
    while ((got = syscall(SYS_getdents64, file, buffer, sizeof buffers[0])) > 0)
        for (long at = 0; at < got;) {
            char *entry = buffer + at; /* u64 inode, s64 offset, u16 length of the record, u8 type, name */
            const char *child = entry + 19;
            size_t before = path_length, length = strlen(child);
            at += *(uint16_t *)(entry + 16);
            if (!strcmp(child, ".") || !strcmp(child, ".."))
                continue;
            if (path_length + length + 1 > PATH_ROOM) {
                errno = ENAMETOOLONG;
                report("path");
                continue;
            }
            path[path_length++] = '/';
            memcpy(path + path_length, child, length);
            path_length += length;
            look_at(file, child);
            path_length = before;
        }
    if (got < 0)
        report("getdents");
    depth--;
    close(file);
}

static void look_at(int folder, const char *name) {
    struct stat st;
    char *data = NULL;
    size_t length = 0;
    if (fstatat(folder, name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
        report("stat");
        return;
    }
    if (S_ISREG(st.st_mode)) {
        data = contents(folder, name, st.st_size, &length);
        if (data == NULL) {
            report("read");
            return;
        }
    } else if (S_ISLNK(st.st_mode)) {
        ssize_t got = readlinkat(folder, name, data = malloc(PATH_ROOM), PATH_ROOM);
        if (got < 0) {
            report("readlink");
            return;
        }
        length = got;
    }
    fprintf(found, "object %o %u %u %lld %lld %lld %lld %llu %llu %lld %u %u %zu %zu\n", st.st_mode, st.st_uid, st.st_gid,
            (long long)st.st_size, (long long)st.st_mtime, (long long)st.st_atime, (long long)st.st_ctime,
            (unsigned long long)st.st_ino, (unsigned long long)st.st_nlink, (long long)st.st_blocks, major(st.st_rdev),
            minor(st.st_rdev), path_length, length);
    fwrite(path, 1, path_length, found);
    fwrite(data, 1, length, found);
    free(data);
    if (S_ISDIR(st.st_mode))
        list(folder, name);
}

/* Puts a file of the host behind a loop device; its number, or -1. */
static int attach(const char *image) {
    struct loop_config config = {.info = {.lo_flags = LO_FLAGS_READ_ONLY}};
    char node[32];
    int control = open("/dev/loop-control", O_RDWR);
    int number = ioctl(control, LOOP_CTL_GET_FREE);
    close(control);
    int file = open(image, O_RDONLY | O_LARGEFILE);
    config.fd = file;
    snprintf(node, sizeof node, "/dev/loop%d", number);
    device = open(node, O_RDONLY | O_LARGEFILE);
    if (file < 0 || device < 0 || ioctl(device, LOOP_CONFIGURE, &config) < 0)
        number = -1;
    close(file);
    return number;
}

static void read_image(const char *image) {
    char node[32];
    struct statfs fs;
    int number = attach(image);
    path_length = 0;
    fprintf(found, "image\n");
    if (number < 0) {
        report("loop");
    } else {
        snprintf(node, sizeof node, "/dev/loop%d", number);
        if (mount(node, "/mnt", "qnx6", MS_RDONLY, "") < 0) {
            report("mount");
        } else {
            statfs("/mnt", &fs);
            block_size = fs.f_bsize;
            look_at(AT_FDCWD, "/mnt");
            if (umount("/mnt") < 0)
                report("umount");
        }
        ioctl(device, LOOP_CLR_FD, 0);
    }
    close(device);
    fprintf(found, "end\n");
    fflush(found);
}

static int load(const char *module) {
    int file = open(module, O_RDONLY);
    return file < 0 ? -1 : syscall(SYS_finit_module, file, "", 0);
}

int main(void) {
    static char line[PATH_ROOM];
    const char *exchange = getenv("exchange");
    FILE *images;
    mount("dev", "/dev", "devtmpfs", 0, ""); /* the kernel may have done it */
    if (mount("none", "/exchange", "hostfs", 0, exchange) == 0 &&
        load("/loop.ko") == 0 && load("/qnx6.ko") == 0 && chdir("/exchange") == 0 && (images = fopen("images", "r")) &&
        (found = fopen("found", "w"))) {
        while (fgets(line, sizeof line, images)) {
            line[strcspn(line, "\n")] = 0;
            read_image(line);
        }
        fprintf(found, "done\n");
        fclose(found);
    } else {
        perror("the guest cannot begin");
    }
    sync();
    reboot(RB_POWER_OFF);
    return 1;
}
