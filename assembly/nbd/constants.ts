// The NBD protocol's own numbers ([NBD], doc/proto.md of the NetworkBlockDevice project), and this client's errors.
// All fields on the wire are big-endian.

export const NBD_MAGIC: u64 = 0x4e42444d41474943; // "NBDMAGIC"
export const NBD_MAGIC_OPTION: u64 = 0x49484156454f5054; // "IHAVEOPT", newstyle
export const NBD_MAGIC_OLDSTYLE: u64 = 0x00420281861253;
export const NBD_MAGIC_OPTION_REPLY: u64 = 0x0003e889045565a9;
export const NBD_MAGIC_REQUEST: u32 = 0x25609513;
export const NBD_MAGIC_SIMPLE_REPLY: u32 = 0x67446698;
export const NBD_MAGIC_STRUCTURED_REPLY: u32 = 0x668e33ef;

// Handshake flags of the server, and the client's, which have the same bits.
export const NBD_FLAG_FIXED_NEWSTYLE: u32 = 1;
export const NBD_FLAG_NO_ZEROES: u32 = 2;

// Transmission flags: what an export is and can.
export const NBD_FLAG_HAS_FLAGS: u32 = 1;
export const NBD_FLAG_READ_ONLY: u32 = 2;
export const NBD_FLAG_SEND_FLUSH: u32 = 4;
export const NBD_FLAG_SEND_FUA: u32 = 8;
export const NBD_FLAG_SEND_TRIM: u32 = 32;

export const NBD_OPT_EXPORT_NAME: u32 = 1;
export const NBD_OPT_ABORT: u32 = 2;
export const NBD_OPT_STARTTLS: u32 = 5;
export const NBD_OPT_GO: u32 = 7;
export const NBD_OPT_STRUCTURED_REPLY: u32 = 8;
/** SPEC.md "Between a card and the image server", as all that has RIBBON in its name or none in [NBD]. */
export const NBD_OPT_RIBBON: u32 = 0x52424e01;

export const NBD_REP_ACK: u32 = 1;
export const NBD_REP_INFO: u32 = 3;
export const NBD_REP_RIBBON: u32 = 0x52424e01;
/** Set in every reply type that is an error. */
export const NBD_REP_FLAG_ERROR: u32 = 0x80000000;
export const NBD_REP_ERR_UNSUP: u32 = 0x80000001;
export const NBD_REP_ERR_POLICY: u32 = 0x80000002;
export const NBD_REP_ERR_PLATFORM: u32 = 0x80000004;
export const NBD_REP_ERR_TLS_REQD: u32 = 0x80000005;
export const NBD_REP_ERR_UNKNOWN: u32 = 0x80000006;
export const NBD_REP_ERR_SHUTDOWN: u32 = 0x80000007;

export const NBD_INFO_EXPORT: u16 = 0;
export const NBD_INFO_BLOCK_SIZE: u16 = 3;

export const NBD_CMD_READ: u16 = 0;
export const NBD_CMD_WRITE: u16 = 1;
export const NBD_CMD_DISC: u16 = 2;
export const NBD_CMD_FLUSH: u16 = 3;
export const NBD_CMD_TRIM: u16 = 4;
export const NBD_CMD_BLOCK_STATUS: u16 = 7;
/** Commands of our own, by a number below 32 here; on the wire they have the one that follows. */
export const NBD_CMD_ASK: u16 = 30;
export const NBD_CMD_ASK_WIRE: u16 = 0x5202;
/** What WRITE is on the wire of a server that knows cards. */
export const NBD_CMD_WRITE_PIECES_WIRE: u16 = 0x5201;
export const NBD_CMD_FLAG_FUA: u16 = 1;

export const NBD_REPLY_FLAG_DONE: u16 = 1;
export const NBD_REPLY_TYPE_NONE: u16 = 0;
export const NBD_REPLY_TYPE_OFFSET_DATA: u16 = 1;
export const NBD_REPLY_TYPE_OFFSET_HOLE: u16 = 2;
/** Set in every chunk type that is an error; unknown ones are read like NBD_REPLY_TYPE_ERROR. */
export const NBD_REPLY_TYPE_BLOCK_STATUS: u16 = 5;
export const NBD_REPLY_TYPE_COMMITTED: u16 = 0x5242;
export const NBD_REPLY_TYPE_KNOWN: u16 = 0x5243;
export const NBD_REPLY_TYPE_PIECES: u16 = 0x5244;
export const NBD_REPLY_TYPE_FLAG_ERROR: u16 = 0x8000;
export const NBD_REPLY_TYPE_ERROR: u16 = 0x8001;
export const NBD_REPLY_TYPE_ERROR_OFFSET: u16 = 0x8002;

export const NBD_EIO: u32 = 5;
export const NBD_ENOTSUP: u32 = 95;

/** Option names, texts and messages are at most this long. */
export const NBD_STRING_SIZE_MAX: u32 = 4096;

export enum NbdState {
  FREE = 0,
  PENDING = 1,
  DONE = 2,
  /** The server answered with an error: `nbdErrno()`. */
  FAILED = 3,
  /** The connection broke: whether the server did it is unknown. */
  LOST = 4,
}

/** Why a connection was given up (SPEC.md "NBD as the card speaks it" has the table). */
export enum NbdError {
  NONE = 0,

  // The link.
  /** No connection could be opened. */
  CONNECT = 1,
  /** The server closed the connection between two messages. */
  CLOSED = 2,
  /** The server closed the connection in the middle of a message. */
  TRUNCATED = 3,
  /** Nothing moved for too long although something was outstanding. */
  SILENCE = 4,
  /** The upper layer gave up: the server refused a write or a flush. */
  REQUEST_REFUSED = 5,
  /** The server is about to shut down. */
  SHUTDOWN = 6,
  /** Clean stop by nbdDisconnect(). */
  DISCONNECTED = 7,
  /** Both sides have changed the same blocks: the next connection asks for a branch. */
  CONFLICT = 8,
  /** The acknowledgement point was switched: the server must know at the next connection what the PC counts on. */
  POINT = 9,

  // Refusals: asking again soon is of no use.
  /** The server has no such export. */
  EXPORT_UNKNOWN = 16,
  /** The server's policy does not let us in. */
  POLICY = 17,
  /** The server wants TLS and the settings do not have it. */
  TLS_REQUIRED = 18,
  /** The settings want TLS and the server does not have it. */
  TLS_UNAVAILABLE = 19,
  /** The handshake failed, or the peer is not who it should be. */
  TLS_FAILED = 20,
  /** The server speaks oldstyle or unfixed newstyle NBD. */
  NOT_FIXED_NEWSTYLE = 21,
  /** The server's block size limits cannot be met. */
  BLOCK_SIZE = 22,
  /** The export has become smaller than it was when this card started. */
  EXPORT_SHRUNK = 23,
  /** The server refused an option for some other reason. */
  OPTION_REFUSED = 24,
  /** The server lacks what it had committed for this card: restored from a backup, or another image of that name. */
  SERVER_OLDER = 25,
  /** The server has committed records of this card's store that the card does not know: the store is a copy. */
  STORE_COPIED = 26,

  // Violations of the protocol by the server.
  BAD_MAGIC = 32,
  /** A reply to an option that was not asked. */
  WRONG_OPTION = 33,
  BAD_OPTION_REPLY = 34,
  /** A length from outside is larger than what it can be. */
  OVERSIZE = 35,
  EXPORT_SIZE = 36,
  /** A reply to a request that is not, or no longer, outstanding. */
  UNKNOWN_COOKIE = 37,
  /** A chunk that this request cannot have. */
  BAD_CHUNK = 38,
  /** A chunk outside of what was asked for. */
  CHUNK_RANGE = 39,
  /** Two chunks with the same byte. */
  CHUNK_OVERLAP = 40,
  /** The last chunk came and bytes are missing. */
  CHUNK_MISSING = 41,
  /** A read was cut into more loose parts than the client keeps account of; the next connection does without chunks. */
  CHUNK_SCATTERED = 42,
  /** A write was reported as done before it was sent. */
  EARLY_REPLY = 43,
  /** Plain bytes behind the reply that starts TLS. */
  TLS_INJECTION = 44,
  /** Extents that are not what was asked for. */
  BAD_EXTENTS = 45,
  /** Payload damaged on its way, again and again. */
  CHECKSUM = 46,
}

export const NBD_ERROR_FIRST_REFUSAL: NbdError = NbdError.EXPORT_UNKNOWN;
export const NBD_ERROR_FIRST_VIOLATION: NbdError = NbdError.BAD_MAGIC;

export function nbdErrorText(error: NbdError): string {
  switch (error) {
    case NbdError.CONNECT:
      return 'cannot connect to the image server';
    case NbdError.CLOSED:
      return 'image server closed the connection';
    case NbdError.TRUNCATED:
      return 'image server closed the connection in the middle of a message';
    case NbdError.SILENCE:
      return 'image server does not answer';
    case NbdError.REQUEST_REFUSED:
      return 'image server refused a request';
    case NbdError.SHUTDOWN:
      return 'image server is shutting down';
    case NbdError.DISCONNECTED:
      return 'disconnected';
    case NbdError.EXPORT_UNKNOWN:
      return 'image server has no such image';
    case NbdError.POLICY:
      return 'image server does not allow this card';
    case NbdError.TLS_REQUIRED:
      return 'image server requires TLS, the settings do not have it';
    case NbdError.TLS_UNAVAILABLE:
      return 'image server has no TLS, the settings require it';
    case NbdError.TLS_FAILED:
      return 'TLS handshake with the image server failed';
    case NbdError.NOT_FIXED_NEWSTYLE:
      return 'image server does not speak fixed newstyle NBD';
    case NbdError.BLOCK_SIZE:
      return 'block size limits of the image server cannot be met';
    case NbdError.EXPORT_SHRUNK:
      return 'image has become smaller';
    case NbdError.OPTION_REFUSED:
      return 'image server refused an option';
    case NbdError.BAD_MAGIC:
      return 'NBD violation: bad magic';
    case NbdError.WRONG_OPTION:
      return 'NBD violation: reply to another option';
    case NbdError.BAD_OPTION_REPLY:
      return 'NBD violation: bad option reply';
    case NbdError.OVERSIZE:
      return 'NBD violation: length too large';
    case NbdError.EXPORT_SIZE:
      return 'NBD violation: impossible image size';
    case NbdError.UNKNOWN_COOKIE:
      return 'NBD violation: reply to no request';
    case NbdError.BAD_CHUNK:
      return 'NBD violation: bad chunk';
    case NbdError.CHUNK_RANGE:
      return 'NBD violation: chunk outside of the request';
    case NbdError.CHUNK_OVERLAP:
      return 'NBD violation: chunks overlap';
    case NbdError.CHUNK_MISSING:
      return 'NBD violation: reply ended with bytes missing';
    case NbdError.CHUNK_SCATTERED:
      return 'NBD reply too scattered, going on without structured replies';
    case NbdError.EARLY_REPLY:
      return 'NBD violation: write done before it was sent';
    case NbdError.CONFLICT:
      return 'both sides have changed the image: asking for a branch';
    case NbdError.POINT:
      return 'another acknowledgement point, connecting again';
    case NbdError.SERVER_OLDER:
      return 'image server knows less than this card, nothing is merged: see ribbon image resolve';
    case NbdError.STORE_COPIED:
      return "the local store is a copy of another card's: format it";
    case NbdError.BAD_EXTENTS:
      return 'NBD violation: bad extents';
    case NbdError.CHECKSUM:
      return 'payload damaged on its way again and again';
    case NbdError.TLS_INJECTION:
      return 'NBD violation: plain bytes before TLS';
    default:
      return 'NBD error';
  }
}
