#include "paths.h"

#include <string.h>

static struct net_path paths[NET_PATHS_MAX];
static unsigned path_count;
static struct net_interface interfaces[NET_INTERFACES_MAX];
static struct net_log log_server;

enum { WORDS_MAX = 6 };

struct word {
  const char *text;
  size_t length;
};

static unsigned split(const char *line, size_t length, struct word words[WORDS_MAX]) {
  unsigned count = 0;
  for (size_t at = 0; at < length;) {
    while (at < length && (line[at] == ' ' || line[at] == '\t' || line[at] == '\r')) at++;
    const size_t start = at;
    while (at < length && line[at] != ' ' && line[at] != '\t' && line[at] != '\r') at++;
    if (at == start) break;
    if (count == WORDS_MAX) return WORDS_MAX + 1;
    words[count++] = (struct word){line + start, at - start};
  }
  return count;
}

static bool word_is(struct word word, const char *text) {
  return strlen(text) == word.length && memcmp(word.text, text, word.length) == 0;
}

static bool copy_text(struct word word, char *target, size_t size) {
  if (word.length >= size) return false;
  memcpy(target, word.text, word.length);
  target[word.length] = 0;
  return true;
}

static bool parse_number(struct word word, uint32_t least, uint32_t most, uint32_t *number) {
  uint32_t value = 0;
  if (word.length == 0 || word.length > 5) return false;
  for (size_t i = 0; i < word.length; i++) {
    if (word.text[i] < '0' || word.text[i] > '9') return false;
    value = value * 10 + (uint32_t)(word.text[i] - '0');
  }
  *number = value;
  return value >= least && value <= most;
}

static bool parse_port(struct word word, uint16_t *port) {
  uint32_t number;
  if (!parse_number(word, 1, 65535, &number)) return false;
  *port = (uint16_t)number;
  return true;
}

/// Takes what stands before `separator` off the front of `rest`; all of it when there is none.
static struct word take_part(struct word *rest, char separator) {
  const char *end = memchr(rest->text, separator, rest->length);
  const struct word part = {rest->text, end == NULL ? rest->length : (size_t)(end - rest->text)};
  const size_t taken = end == NULL ? part.length : part.length + 1;
  rest->text += taken;
  rest->length -= taken;
  return part;
}

static bool parse_ipv4(struct word word, uint8_t address[4]) {
  for (unsigned i = 0; i < 4; i++) {
    uint32_t number;
    const bool is_last = i == 3;
    if (!parse_number(take_part(&word, is_last ? 0 : '.'), 0, 255, &number)) return false;
    address[i] = (uint8_t)number;
  }
  return word.length == 0;
}

/// 0, 127 and everything from 224 on are no host's addresses.
static bool is_host(const uint8_t address[4]) { return address[0] != 0 && address[0] != 127 && address[0] < 224; }

static bool parse_interface(const struct word *words, unsigned count) {
  uint32_t number;
  if (count < 3 || !parse_number(words[1], 0, NET_INTERFACES_MAX - 1, &number)) return false;
  struct net_interface parsed = {0};
  if (word_is(words[2], "static") && (count == 4 || count == 5)) {
    struct word rest = words[3];
    uint32_t prefix;
    parsed.is_static = true;
    if (!parse_ipv4(take_part(&rest, '/'), parsed.address) || !parse_number(rest, 1, 30, &prefix)) return false;
    parsed.prefix = prefix;
    if (!is_host(parsed.address)) return false;
    if (count == 5 && !parse_ipv4(words[4], parsed.gateway)) return false;
  } else if (!word_is(words[2], "dhcp") || count != 3) {
    return false;
  }
  interfaces[number] = parsed;
  return true;
}

static bool parse_log(const struct word *words, unsigned count) {
  return count == 3 && parse_ipv4(words[1], log_server.address) && is_host(log_server.address) && parse_port(words[2], &log_server.port);
}

static int hex_digit(char character) {
  if (character >= '0' && character <= '9') return character - '0';
  if (character >= 'a' && character <= 'f') return character - 'a' + 10;
  if (character >= 'A' && character <= 'F') return character - 'A' + 10;
  return -1;
}

static bool parse_key(struct word word, struct net_path *path) {
  path->psk_length = word.length / 2;
  // [RFC 4279] 5.3 wants at least 64 bits where keys come from people; ours come from a generator.
  if (word.length % 2 != 0 || path->psk_length < 16 || path->psk_length > sizeof path->psk) return false;
  for (size_t i = 0; i < path->psk_length; i++) {
    const int high = hex_digit(word.text[2 * i]), low = hex_digit(word.text[2 * i + 1]);
    if (high < 0 || low < 0) return false;
    path->psk[i] = (uint8_t)(high << 4 | low);
  }
  return true;
}

static bool parse_line(const struct word *words, unsigned count, struct net_path *path) {
  unsigned used;
  memset(path, 0, sizeof *path);
  if (count >= 3 && word_is(words[0], "tcp")) {
    path->kind = PATH_TCP;
    if (!copy_text(words[1], path->address, sizeof path->address) || !parse_port(words[2], &path->port)) return false;
    used = 3;
  } else if (count >= 2 && word_is(words[0], "unix")) {
    path->kind = PATH_UNIX;
    if (!copy_text(words[1], path->address, sizeof path->address)) return false;
    used = 2;
  } else {
    return false;
  }
  if (count == used) return true;
  if (count != used + 3 || !word_is(words[used], "psk")) return false;
  path->has_psk = true;
  return copy_text(words[used + 1], path->psk_identity, sizeof path->psk_identity) && parse_key(words[used + 2], path);
}

unsigned paths_parse(const char *text, size_t length) {
  path_count = 0;
  memset(interfaces, 0, sizeof interfaces);
  memset(&log_server, 0, sizeof log_server);
  unsigned line_number = 0;
  for (size_t at = 0; at < length;) {
    const char *end = memchr(text + at, '\n', length - at);
    const size_t line_length = end == NULL ? length - at : (size_t)(end - (text + at));
    line_number++;
    struct word words[WORDS_MAX];
    const unsigned count = split(text + at, line_length, words);
    at += line_length + 1;
    if (count == 0 || words[0].text[0] == '#') continue;
    if (count <= WORDS_MAX && word_is(words[0], "interface")) {
      if (!parse_interface(words, count)) return line_number;
      continue;
    }
    if (count <= WORDS_MAX && word_is(words[0], "log")) {
      if (!parse_log(words, count)) return line_number;
      continue;
    }
    if (count > WORDS_MAX || path_count == NET_PATHS_MAX) return line_number;
    if (!parse_line(words, count, &paths[path_count])) return line_number;
    path_count++;
  }
  return 0;
}

const struct net_path *paths_get(unsigned index) { return index < path_count ? &paths[index] : NULL; }
const struct net_interface *paths_interface(unsigned index) { return &interfaces[index]; }
const struct net_log *paths_log(void) { return &log_server; }
