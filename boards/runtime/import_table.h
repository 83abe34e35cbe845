// The firmware's imports, as a table. Written by tools/build-boards.ts from assembly/imports.ts, so that a name, an order or
// a type that differs between the two sides does not compile.
#ifndef RIBBON_IMPORT_TABLE_H
#define RIBBON_IMPORT_TABLE_H

#include <stddef.h>

#include "wasm3.h"

struct import {
  const char *module;
  const char *name;
  const char *signature; // wasm3's notation: result(parameters), i = i32, I = i64, v = none
  M3RawCall wasm3;
};

extern const struct import IMPORTS[];
extern const size_t IMPORT_COUNT;

#endif
