/* Makes calls on files of a database's folder fail: LD_PRELOAD this, with

     FAULT_FOLDER  a part of the path that those files have
     FAULT_CALLS   the calls that fail, counted from 1: "7,8", or "0.03/5", each with this chance and seed

   A write that fails has written half. Each fault is told on stderr. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int fails(const char *call, const char *path) {
  static const char *folder, *calls;
  static long count;
  if (!calls) folder = getenv("FAULT_FOLDER"), calls = getenv("FAULT_CALLS");
  if (!calls || !path || !strstr(path, folder)) return 0;
  long number = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
  int failing = 0;
  const char *slash = strchr(calls, '/');
  if (slash) {
    static unsigned seed;
    if (number == 1) seed = atoi(slash + 1) + 1;
    failing = rand_r(&seed) < atof(calls) * RAND_MAX;
  } else
    for (const char *at = calls; at; at = strchr(at, ','), at = at ? at + 1 : at)
      failing |= atol(at) == number;
  if (failing) dprintf(2, "%ld %s %s\n", number, call, path);
  return failing;
}

static const char *path_of(int fd) {
  static __thread char path[4096], link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t size = readlink(link, path, sizeof path - 1);
  if (size < 0) return NULL;
  path[size] = 0;
  return path;
}

#define NEXT(type, name) static type (*next)(); if (!next) next = dlsym(RTLD_NEXT, #name)
#define FAIL(call, path, number, result) if (fails(call, path)) { errno = number; return result; }

ssize_t write(int fd, const void *data, size_t size) {
  NEXT(ssize_t, write);
  if (fails("write", path_of(fd))) {
    next(fd, data, size / 2);
    errno = ENOSPC;
    return -1;
  }
  return next(fd, data, size);
}
int fsync(int fd) { NEXT(int, fsync); FAIL("fsync", path_of(fd), EIO, -1); return next(fd); }
int fdatasync(int fd) { NEXT(int, fdatasync); FAIL("fdatasync", path_of(fd), EIO, -1); return next(fd); }
int flock(int fd, int how) { NEXT(int, flock); FAIL("flock", path_of(fd), ENOLCK, -1); return next(fd, how); }
int mkdir(const char *path, mode_t mode) { NEXT(int, mkdir); FAIL("mkdir", path, EIO, -1); return next(path, mode); }
int stat(const char *path, struct stat *found) { NEXT(int, stat); FAIL("stat", path, EIO, -1); return next(path, found); }
DIR *opendir(const char *path) { NEXT(DIR *, opendir); FAIL("opendir", path, EMFILE, NULL); return next(path); }
ssize_t read(int fd, void *data, size_t size) {
  NEXT(ssize_t, read); FAIL("read", path_of(fd), EIO, -1); return next(fd, data, size); }
ssize_t pread(int fd, void *data, size_t size, off_t at) {
  NEXT(ssize_t, pread); FAIL("pread", path_of(fd), EIO, -1); return next(fd, data, size, at); }
void *mmap(void *at, size_t size, int how, int flags, int fd, off_t from) {
  NEXT(void *, mmap); FAIL("mmap", fd < 0 ? NULL : path_of(fd), ENOMEM, MAP_FAILED);
  return next(at, size, how, flags, fd, from); }
int close(int fd) {
  NEXT(int, close);
  if (fails("close", path_of(fd))) {
    next(fd);
    errno = EIO;
    return -1;
  }
  return next(fd);
}
int rename(const char *from, const char *to) { NEXT(int, rename); FAIL("rename", to, EIO, -1); return next(from, to); }
int unlink(const char *path) { NEXT(int, unlink); FAIL("unlink", path, EIO, -1); return next(path); }
static int opened(int (*next)(), const char *path, int flags, int mode) {
  FAIL("open", path, EMFILE, -1);
  return next(path, flags, mode);
}
#define OPEN(name) int name(const char *path, int flags, ...) { \
  va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \
  NEXT(int, name); return opened(next, path, flags, mode); }
OPEN(open)
OPEN(open64)
