// Validation after the WebAssembly core specification 1.0, appendix "Validation Algorithm", with the rules of wasm_check.h.
// A reader that runs past the end, or any rule that is broken, ends the check through refuse().

#include "wasm_check.h"

#include <setjmp.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "import_table.h"

enum { TYPE_I32 = 0x7f, TYPE_I64 = 0x7e, TYPE_ANY = 0, TYPE_NONE = 0x40 };
enum { SECTION_TYPE = 1, SECTION_IMPORT, SECTION_FUNCTION, SECTION_TABLE, SECTION_MEMORY, SECTION_GLOBAL, SECTION_EXPORT,
       SECTION_START, SECTION_ELEMENT, SECTION_CODE, SECTION_DATA, SECTION_DATA_COUNT };

struct function_type {
  uint8_t parameter_count, result_count;
  uint8_t parameters[WASM_PARAMETERS_MAX];
  uint8_t result;
};

struct frame {
  uint8_t opcode;      // block, loop, if, else; 0 for the function itself
  uint8_t result;      // TYPE_NONE, or the type left on the stack
  bool unreachable;    // after br, return, unreachable: operands may be anything
  uint16_t height;     // of the operand stack when the frame was entered
};

struct checker {
  const uint8_t *at, *end;
  jmp_buf failure;
  const char *reason;
  uint32_t memory_pages;

  struct function_type types[WASM_TYPES_MAX];
  uint32_t type_count;
  uint16_t function_types[WASM_FUNCTIONS_MAX]; // imported functions first
  uint32_t function_count, import_count, code_count;
  struct { uint8_t type, is_mutable; } globals[WASM_GLOBALS_MAX];
  uint32_t global_count;
  bool has_memory, has_init, has_step;

  uint8_t locals[WASM_LOCALS_MAX];
  uint32_t local_count;
  uint8_t operands[WASM_OPERANDS_MAX];
  uint32_t operand_count;
  struct frame frames[WASM_NESTING_MAX];
  uint32_t frame_count;

  // The call graph: callees of function f are calls[first_call[f]] up to calls[first_call[f + 1]].
  uint16_t calls[WASM_CALLS_MAX];
  uint32_t call_count;
  uint32_t first_call[WASM_FUNCTIONS_MAX + 1];
  uint8_t depth[WASM_FUNCTIONS_MAX];
};

static _Noreturn void refuse(struct checker *c, const char *reason) {
  c->reason = reason;
  longjmp(c->failure, 1);
}

static void require(struct checker *c, bool condition, const char *reason) {
  if (!condition) refuse(c, reason);
}

// Reading

static uint8_t read_u8(struct checker *c) {
  require(c, c->at < c->end, "module is cut off");
  return *c->at++;
}

static uint64_t read_leb(struct checker *c, unsigned bits, bool is_signed) {
  uint64_t value = 0;
  for (unsigned shift = 0;; shift += 7) {
    require(c, shift < bits, "number is too long");
    const uint8_t byte = read_u8(c);
    value |= (uint64_t)(byte & 0x7f) << shift;
    if (byte & 0x80) continue;
    const unsigned left = bits - shift;
    if (left < 7) {
      // The unused bits of the last byte must repeat the sign, or be zero.
      const uint8_t unused = (uint8_t)((0x7f << (is_signed ? left - 1 : left)) & 0x7f);
      require(c, (byte & unused) == 0 || (is_signed && (byte & unused) == unused), "number is too large");
    }
    if (is_signed && (byte & 0x40) && shift + 7 < 64) value |= UINT64_MAX << (shift + 7);
    return value;
  }
}

static uint32_t read_u32(struct checker *c) { return (uint32_t)read_leb(c, 32, false); }

static uint32_t read_count(struct checker *c, uint32_t most, const char *reason) {
  const uint32_t count = read_u32(c);
  require(c, count <= most, reason);
  return count;
}

static void skip(struct checker *c, uint32_t count) {
  require(c, count <= (size_t)(c->end - c->at), "module is cut off");
  c->at += count;
}

static uint8_t read_value_type(struct checker *c) {
  const uint8_t type = read_u8(c);
  require(c, type == TYPE_I32 || type == TYPE_I64, "floating point and reference types are not allowed");
  return type;
}

struct name {
  const char *text;
  uint32_t length;
};

static struct name read_name(struct checker *c) {
  const uint32_t length = read_u32(c);
  const struct name name = {(const char *)c->at, length};
  skip(c, length);
  // Names are UTF-8; of that, ASCII is all that anything here is called.
  for (uint32_t i = 0; i < length; i++) require(c, (uint8_t)name.text[i] < 0x80, "a name is not ASCII");
  return name;
}

static bool name_is(struct name name, const char *text) {
  return strlen(text) == name.length && memcmp(name.text, text, name.length) == 0;
}

// Sections

static void check_types(struct checker *c) {
  c->type_count = read_count(c, WASM_TYPES_MAX, "too many types");
  for (uint32_t i = 0; i < c->type_count; i++) {
    struct function_type *type = &c->types[i];
    require(c, read_u8(c) == 0x60, "type is not a function type");
    type->parameter_count = (uint8_t)read_count(c, WASM_PARAMETERS_MAX, "too many parameters");
    for (uint32_t p = 0; p < type->parameter_count; p++) type->parameters[p] = read_value_type(c);
    type->result_count = (uint8_t)read_count(c, 1, "more than one result");
    type->result = type->result_count == 1 ? read_value_type(c) : TYPE_NONE;
  }
}

// Signatures are written as wasm3 has them: result, then parameters in brackets, `i` and `I` for i32 and i64, `v` for none.
static bool signature_is(const struct function_type *type, const char *signature) {
  const uint8_t result = signature[0] == 'i' ? TYPE_I32 : signature[0] == 'I' ? TYPE_I64 : TYPE_NONE;
  if (type->result != result) return false;
  const char *parameter = signature + 2;
  for (uint32_t i = 0; i < type->parameter_count; i++, parameter++) {
    if (*parameter != (type->parameters[i] == TYPE_I32 ? 'i' : 'I')) return false;
  }
  return *parameter == ')';
}

static void check_imported_function(struct checker *c, struct name module, struct name field) {
  const uint32_t type = read_u32(c);
  require(c, type < c->type_count, "unknown type");
  for (size_t i = 0; i < IMPORT_COUNT; i++) {
    if (!name_is(module, IMPORTS[i].module) || !name_is(field, IMPORTS[i].name)) continue;
    require(c, signature_is(&c->types[type], IMPORTS[i].signature), "an import has the wrong type");
    require(c, c->function_count < WASM_FUNCTIONS_MAX, "too many functions");
    c->function_types[c->function_count++] = (uint16_t)type;
    return;
  }
  refuse(c, "an import is unknown to this runtime");
}

static void check_imports(struct checker *c) {
  const uint32_t count = read_u32(c);
  for (uint32_t i = 0; i < count; i++) {
    const struct name module = read_name(c);
    const struct name field = read_name(c);
    const uint8_t kind = read_u8(c);
    if (kind == 0) {
      check_imported_function(c, module, field);
      continue;
    }
    require(c, kind == 2, "only functions and the memory can be imported");
    require(c, name_is(module, "env") && name_is(field, "memory") && !c->has_memory, "the memory must be env.memory, once");
    c->has_memory = true;
    const uint8_t limits = read_u8(c);
    require(c, limits <= 1, "shared and 64-bit memories are not allowed");
    require(c, read_u32(c) <= c->memory_pages, "the module wants more memory than there is");
    if (limits == 1) require(c, read_u32(c) >= c->memory_pages, "the memory is larger than the module allows");
  }
  c->import_count = c->function_count;
}

static void check_functions(struct checker *c) {
  const uint32_t count = read_count(c, WASM_FUNCTIONS_MAX - c->function_count, "too many functions");
  for (uint32_t i = 0; i < count; i++) {
    const uint32_t type = read_u32(c);
    require(c, type < c->type_count, "unknown type");
    c->function_types[c->function_count++] = (uint16_t)type;
  }
}

static void check_constant(struct checker *c, uint8_t type) {
  const uint8_t opcode = read_u8(c);
  require(c, opcode == (type == TYPE_I32 ? 0x41 : 0x42), "an initialiser is not a constant of its type");
  read_leb(c, type == TYPE_I32 ? 32 : 64, true);
  require(c, read_u8(c) == 0x0b, "an initialiser is not a constant");
}

static void check_globals(struct checker *c) {
  c->global_count = read_count(c, WASM_GLOBALS_MAX, "too many globals");
  for (uint32_t i = 0; i < c->global_count; i++) {
    c->globals[i].type = read_value_type(c);
    c->globals[i].is_mutable = read_u8(c);
    require(c, c->globals[i].is_mutable <= 1, "malformed global");
    check_constant(c, c->globals[i].type);
  }
}

static void check_exports(struct checker *c) {
  const uint32_t count = read_u32(c);
  for (uint32_t i = 0; i < count; i++) {
    const struct name name = read_name(c);
    const uint8_t kind = read_u8(c);
    const uint32_t index = read_u32(c);
    const bool is_init = name_is(name, "init"), is_step = name_is(name, "step");
    if (kind == 0) {
      require(c, index < c->function_count, "export of an unknown function");
      if (is_init || is_step) {
        require(c, index >= c->import_count, "an entry point is an import");
        require(c, signature_is(&c->types[c->function_types[index]], "i()"), "an entry point has the wrong type");
      }
      if (is_init) c->has_init = true;
      if (is_step) c->has_step = true;
    } else if (kind == 2) {
      require(c, index == 0 && c->has_memory, "export of an unknown memory");
    } else {
      require(c, kind == 3 && index < c->global_count, "export of something unknown");
    }
  }
}

static void check_data(struct checker *c) {
  const uint32_t count = read_u32(c);
  for (uint32_t i = 0; i < count; i++) {
    require(c, read_u8(c) == 0, "only active data segments of memory 0 are allowed");
    const uint8_t opcode = read_u8(c);
    require(c, opcode == 0x41, "a data segment's offset is not a constant");
    const uint32_t offset = (uint32_t)read_leb(c, 32, true);
    require(c, read_u8(c) == 0x0b, "a data segment's offset is not a constant");
    const uint32_t length = read_u32(c);
    require(c, (uint64_t)offset + length <= (uint64_t)c->memory_pages * 65536, "a data segment is out of bounds");
    skip(c, length);
  }
}

// Function bodies

static void push(struct checker *c, uint8_t type) {
  if (type == TYPE_NONE) return;
  require(c, c->operand_count < WASM_OPERANDS_MAX, "too many operands");
  c->operands[c->operand_count++] = type;
}

static uint8_t pop(struct checker *c, uint8_t expected) {
  const struct frame *frame = &c->frames[c->frame_count - 1];
  if (c->operand_count == frame->height) {
    require(c, frame->unreachable, "an operand is missing");
    return expected;
  }
  const uint8_t type = c->operands[--c->operand_count];
  require(c, type == expected || type == TYPE_ANY || expected == TYPE_ANY, "an operand has the wrong type");
  return type == TYPE_ANY ? expected : type;
}

static void pop_result(struct checker *c, uint8_t type) {
  if (type != TYPE_NONE) pop(c, type);
}

static void enter(struct checker *c, uint8_t opcode, uint8_t result) {
  require(c, c->frame_count < WASM_NESTING_MAX, "blocks are nested too deeply");
  c->frames[c->frame_count++] =
      (struct frame){.opcode = opcode, .result = result, .unreachable = false, .height = (uint16_t)c->operand_count};
}

static struct frame leave(struct checker *c) {
  const struct frame frame = c->frames[c->frame_count - 1];
  pop_result(c, frame.result);
  require(c, c->operand_count == frame.height, "operands are left over at the end of a block");
  c->frame_count--;
  return frame;
}

static void set_unreachable(struct checker *c) {
  struct frame *frame = &c->frames[c->frame_count - 1];
  c->operand_count = frame->height;
  frame->unreachable = true;
}

static const struct frame *label(struct checker *c, uint32_t depth) {
  require(c, depth < c->frame_count, "branch to an unknown label");
  return &c->frames[c->frame_count - 1 - depth];
}

/// What a branch to `frame` takes with it: nothing for a loop, whose label is at its start.
static uint8_t label_type(const struct frame *frame) { return frame->opcode == 0x03 ? TYPE_NONE : frame->result; }

static uint8_t read_block_type(struct checker *c) {
  const uint8_t type = read_u8(c);
  require(c, type == TYPE_NONE || type == TYPE_I32 || type == TYPE_I64, "block type is not allowed");
  return type;
}

static void check_branch_table(struct checker *c) {
  pop(c, TYPE_I32);
  const uint32_t count = read_count(c, (uint32_t)(c->end - c->at), "branch table is cut off");
  uint8_t type = TYPE_NONE;
  for (uint32_t i = 0; i <= count; i++) {
    const uint8_t this_type = label_type(label(c, read_u32(c)));
    require(c, i == 0 || this_type == type, "targets of a branch table differ in type");
    type = this_type;
  }
  pop_result(c, type);
  set_unreachable(c);
}

static void check_call(struct checker *c) {
  const uint32_t callee = read_u32(c);
  require(c, callee < c->function_count, "call of an unknown function");
  const struct function_type *type = &c->types[c->function_types[callee]];
  for (uint32_t i = type->parameter_count; i-- > 0;) pop(c, type->parameters[i]);
  push(c, type->result);
  if (callee < c->import_count) return;
  require(c, c->call_count < WASM_CALLS_MAX, "too many calls");
  c->calls[c->call_count++] = (uint16_t)callee;
}

static void check_memory_access(struct checker *c, uint32_t alignment_max) {
  require(c, c->has_memory, "memory access without a memory");
  require(c, read_u32(c) <= alignment_max, "an access claims more than its natural alignment");
  read_u32(c); // offset: the engines check address + offset
}

static void unary(struct checker *c, uint8_t from, uint8_t to) {
  pop(c, from);
  push(c, to);
}

static void binary(struct checker *c, uint8_t from, uint8_t to) {
  pop(c, from);
  pop(c, from);
  push(c, to);
}

static void check_bulk_memory(struct checker *c) {
  const uint32_t opcode = read_u32(c);
  require(c, opcode == 10 || opcode == 11, "an instruction is not allowed");
  require(c, c->has_memory, "memory access without a memory");
  require(c, read_u8(c) == 0, "only memory 0");
  if (opcode == 10) require(c, read_u8(c) == 0, "only memory 0");
  pop(c, TYPE_I32);
  pop(c, TYPE_I32);
  pop(c, TYPE_I32);
}

static void check_local(struct checker *c, uint8_t opcode) {
  const uint32_t index = read_u32(c);
  require(c, index < c->local_count, "unknown local");
  if (opcode != 0x20) pop(c, c->locals[index]);
  if (opcode != 0x21) push(c, c->locals[index]);
}

static void check_global(struct checker *c, uint8_t opcode) {
  const uint32_t index = read_u32(c);
  require(c, index < c->global_count, "unknown global");
  if (opcode == 0x23) {
    push(c, c->globals[index].type);
  } else {
    require(c, c->globals[index].is_mutable, "a constant global is written");
    pop(c, c->globals[index].type);
  }
}

static void check_select(struct checker *c) {
  pop(c, TYPE_I32);
  const uint8_t type = pop(c, TYPE_ANY);
  push(c, pop(c, type));
}

/// Loads 28h to 35h and stores 36h to 3Eh: natural alignment as a power of two, and the type moved. Type 0: not allowed.
static const struct { uint8_t alignment, type; } ACCESSES[] = {
    {2, TYPE_I32}, {3, TYPE_I64}, {0, 0}, {0, 0},                             // 28 i32.load, i64.load, (floats)
    {0, TYPE_I32}, {0, TYPE_I32}, {1, TYPE_I32}, {1, TYPE_I32},               // 2C i32.load8_s/u, 16_s/u
    {0, TYPE_I64}, {0, TYPE_I64}, {1, TYPE_I64}, {1, TYPE_I64},               // 30 i64.load8_s/u, 16_s/u
    {2, TYPE_I64}, {2, TYPE_I64},                                             // 34 i64.load32_s/u
    {2, TYPE_I32}, {3, TYPE_I64}, {0, 0}, {0, 0},                             // 36 i32.store, i64.store, (floats)
    {0, TYPE_I32}, {1, TYPE_I32}, {0, TYPE_I64}, {1, TYPE_I64}, {2, TYPE_I64} // 3A i32.store8/16, i64.store8/16/32
};

static void check_access(struct checker *c, uint8_t opcode) {
  const uint8_t type = ACCESSES[opcode - 0x28].type;
  require(c, type != 0, "floating point is not allowed");
  check_memory_access(c, ACCESSES[opcode - 0x28].alignment);
  if (opcode >= 0x36) {
    pop(c, type);
    pop(c, TYPE_I32);
  } else {
    unary(c, TYPE_I32, type);
  }
}

static void check_numeric(struct checker *c, uint8_t opcode) {
  if (opcode == 0x45) unary(c, TYPE_I32, TYPE_I32);                              // i32.eqz
  else if (opcode >= 0x46 && opcode <= 0x4f) binary(c, TYPE_I32, TYPE_I32);      // i32 comparisons
  else if (opcode == 0x50) unary(c, TYPE_I64, TYPE_I32);                         // i64.eqz
  else if (opcode >= 0x51 && opcode <= 0x5a) binary(c, TYPE_I64, TYPE_I32);      // i64 comparisons
  else if (opcode >= 0x67 && opcode <= 0x69) unary(c, TYPE_I32, TYPE_I32);       // i32.clz, ctz, popcnt
  else if (opcode >= 0x6a && opcode <= 0x78) binary(c, TYPE_I32, TYPE_I32);      // i32 arithmetic
  else if (opcode >= 0x79 && opcode <= 0x7b) unary(c, TYPE_I64, TYPE_I64);       // i64.clz, ctz, popcnt
  else if (opcode >= 0x7c && opcode <= 0x8a) binary(c, TYPE_I64, TYPE_I64);      // i64 arithmetic
  else if (opcode == 0xa7) unary(c, TYPE_I64, TYPE_I32);                         // i32.wrap_i64
  else if (opcode == 0xac || opcode == 0xad) unary(c, TYPE_I32, TYPE_I64);       // i64.extend_i32_s/u
  else if (opcode == 0xc0 || opcode == 0xc1) unary(c, TYPE_I32, TYPE_I32);       // i32.extend8_s, 16_s
  else if (opcode >= 0xc2 && opcode <= 0xc4) unary(c, TYPE_I64, TYPE_I64);       // i64.extend8_s, 16_s, 32_s
  else refuse(c, "an instruction is not allowed (floating point, tables or unknown)");
}

static void check_instruction(struct checker *c) {
  const uint8_t opcode = read_u8(c);
  switch (opcode) {
    case 0x00: // unreachable
      set_unreachable(c);
      return;
    case 0x01: // nop
      return;
    case 0x02: // block
    case 0x03: // loop
      enter(c, opcode, read_block_type(c));
      return;
    case 0x04: // if
      pop(c, TYPE_I32);
      enter(c, opcode, read_block_type(c));
      return;
    case 0x05: { // else
      const struct frame frame = leave(c);
      require(c, frame.opcode == 0x04, "else without if");
      enter(c, 0x05, frame.result);
      return;
    }
    case 0x0b: { // end
      const struct frame frame = leave(c);
      require(c, frame.opcode != 0x04 || frame.result == TYPE_NONE, "if with a result but without else");
      push(c, frame.result);
      return;
    }
    case 0x0c: // br
      pop_result(c, label_type(label(c, read_u32(c))));
      set_unreachable(c);
      return;
    case 0x0d: { // br_if
      const uint8_t type = label_type(label(c, read_u32(c)));
      pop(c, TYPE_I32);
      pop_result(c, type);
      push(c, type);
      return;
    }
    case 0x0e:
      check_branch_table(c);
      return;
    case 0x0f: // return
      pop_result(c, c->frames[0].result);
      set_unreachable(c);
      return;
    case 0x10:
      check_call(c);
      return;
    case 0x1a: // drop
      pop(c, TYPE_ANY);
      return;
    case 0x1b:
      check_select(c);
      return;
    case 0x20: // local.get, set, tee
    case 0x21:
    case 0x22:
      check_local(c, opcode);
      return;
    case 0x23: // global.get, set
    case 0x24:
      check_global(c, opcode);
      return;
    case 0x3f: // memory.size
      require(c, c->has_memory && read_u8(c) == 0, "only memory 0");
      push(c, TYPE_I32);
      return;
    case 0x40:
      refuse(c, "memory.grow is not allowed");
    case 0x41: // i32.const
      read_leb(c, 32, true);
      push(c, TYPE_I32);
      return;
    case 0x42: // i64.const
      read_leb(c, 64, true);
      push(c, TYPE_I64);
      return;
    case 0xfc:
      check_bulk_memory(c);
      return;
    default:
      if (opcode >= 0x28 && opcode <= 0x3e) check_access(c, opcode);
      else check_numeric(c, opcode);
  }
}

static void check_body(struct checker *c, uint32_t function) {
  const struct function_type *type = &c->types[c->function_types[function]];
  memcpy(c->locals, type->parameters, type->parameter_count);
  c->local_count = type->parameter_count;
  const uint32_t groups = read_u32(c);
  for (uint32_t i = 0; i < groups; i++) {
    const uint32_t count = read_count(c, WASM_LOCALS_MAX - c->local_count, "too many locals");
    memset(c->locals + c->local_count, read_value_type(c), count);
    c->local_count += count;
  }
  c->operand_count = 0;
  c->frame_count = 0;
  enter(c, 0, type->result);
  while (c->frame_count > 0) {
    // leave() pops the function's own frame before its result is pushed: nothing reads that operand.
    check_instruction(c);
  }
  require(c, c->at == c->end, "a function body goes on behind its end");
}

static void check_code(struct checker *c) {
  c->code_count = read_u32(c);
  require(c, c->code_count == c->function_count - c->import_count, "functions and bodies differ in number");
  const uint8_t *section_end = c->end;
  for (uint32_t i = 0; i < c->code_count; i++) {
    const uint32_t size = read_u32(c);
    require(c, size <= (size_t)(section_end - c->at), "module is cut off");
    c->end = c->at + size;
    c->first_call[c->import_count + i] = c->call_count;
    check_body(c, c->import_count + i);
    c->end = section_end;
  }
  c->first_call[c->function_count] = c->call_count;
}

// Stack depth: the longest chain of calls below each function. `chain` holds the functions on the way down and how far
// their callees have been looked at; a callee that is itself on the chain is recursion.

static void check_call_depth(struct checker *c) {
  enum { UNKNOWN = 0, ON_CHAIN = 0xff };
  struct { uint16_t function; uint32_t next_call; } chain[WASM_CALL_DEPTH_MAX];
  for (uint32_t root = c->import_count; root < c->function_count; root++) {
    if (c->depth[root] != UNKNOWN) continue;
    uint32_t length = 0;
    chain[length].function = (uint16_t)root;
    chain[length++].next_call = c->first_call[root];
    c->depth[root] = ON_CHAIN;
    while (length > 0) {
      const uint16_t function = chain[length - 1].function;
      if (chain[length - 1].next_call < c->first_call[function + 1]) {
        const uint16_t callee = c->calls[chain[length - 1].next_call++];
        require(c, c->depth[callee] != ON_CHAIN, "recursion is not allowed");
        if (c->depth[callee] != UNKNOWN) continue;
        require(c, length < WASM_CALL_DEPTH_MAX, "calls are nested too deeply");
        chain[length].function = callee;
        chain[length++].next_call = c->first_call[callee];
        c->depth[callee] = ON_CHAIN;
        continue;
      }
      uint8_t deepest = 0;
      for (uint32_t i = c->first_call[function]; i < c->first_call[function + 1]; i++) {
        if (c->depth[c->calls[i]] > deepest) deepest = c->depth[c->calls[i]];
      }
      require(c, deepest < WASM_CALL_DEPTH_MAX, "calls are nested too deeply");
      c->depth[function] = deepest + 1;
      length--;
    }
  }
}

// The module

static void check_section(struct checker *c, uint8_t id) {
  switch (id) {
    case SECTION_TYPE:
      check_types(c);
      return;
    case SECTION_IMPORT:
      check_imports(c);
      return;
    case SECTION_FUNCTION:
      check_functions(c);
      return;
    case SECTION_TABLE:
    case SECTION_ELEMENT:
      refuse(c, "tables are not allowed");
    case SECTION_MEMORY:
      refuse(c, "the memory must be imported");
    case SECTION_GLOBAL:
      check_globals(c);
      return;
    case SECTION_EXPORT:
      check_exports(c);
      return;
    case SECTION_START: {
      const uint32_t start = read_u32(c);
      require(c, start < c->function_count, "unknown start function");
      const struct function_type *type = &c->types[c->function_types[start]];
      require(c, type->parameter_count == 0 && type->result_count == 0, "the start function has the wrong type");
      return;
    }
    case SECTION_CODE:
      check_code(c);
      return;
    case SECTION_DATA:
      check_data(c);
      return;
    case SECTION_DATA_COUNT:
      read_u32(c);
      return;
    default:
      refuse(c, "unknown section");
  }
}

/// Sections come in the order of their numbers, but the data count stands before the code.
static unsigned section_rank(uint8_t id) {
  return id == SECTION_DATA_COUNT ? 2 * SECTION_CODE - 1 : 2u * id;
}

static void check_module(struct checker *c) {
  static const uint8_t HEADER[8] = {0, 'a', 's', 'm', 1, 0, 0, 0};
  require(c, c->end - c->at >= 8 && memcmp(c->at, HEADER, 8) == 0, "not a WebAssembly module");
  skip(c, 8);
  const uint8_t *module_end = c->end;
  unsigned last_rank = 0;
  while (c->at < module_end) {
    const uint8_t id = read_u8(c);
    const uint32_t size = read_u32(c);
    require(c, size <= (size_t)(module_end - c->at), "module is cut off");
    c->end = c->at + size;
    if (id == 0) {
      read_name(c); // custom sections say nothing that matters here
      c->at = c->end;
    } else {
      require(c, section_rank(id) > last_rank, "sections are out of order");
      last_rank = section_rank(id);
      check_section(c, id);
      require(c, c->at == c->end, "a section goes on behind its end");
    }
    c->end = module_end;
  }
  require(c, c->code_count == c->function_count - c->import_count, "functions and bodies differ in number");
  require(c, c->has_memory, "the module does not import env.memory");
  require(c, c->has_init && c->has_step, "the module does not export init and step");
  check_call_depth(c);
}

const char *wasm_check(const uint8_t *wasm, size_t length, uint32_t memory_pages) {
  // Some 100 KiB, needed while a module is loaded only.
  struct checker *checker = calloc(1, sizeof *checker);
  if (checker == NULL) return "no memory to check the module";
  checker->at = wasm;
  checker->end = wasm + length;
  checker->memory_pages = memory_pages;
  if (setjmp(checker->failure) == 0) check_module(checker);
  const char *reason = checker->reason;
  free(checker);
  return reason;
}
