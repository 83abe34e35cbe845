// What an HTTP request may be: a table of routes. The same table checks requests and describes itself (OpenAPI).

import type http from 'node:http';
import type { Right } from '../store/store.js';
import type { Client } from './export.js';

/** A request that is answered with an error: `code` is for programs, the message for people. */
export class HttpError extends Error {
  override name = 'HttpError';
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
    readonly headers: Record<string, string> = {},
  ) {
    super(message);
  }
}

export type FieldType = 'string' | 'integer' | 'boolean' | 'generation' | 'object' | 'strings';

export interface Field {
  type: FieldType;
  about: string;
  required?: boolean;
}

export interface HttpRequest {
  client: Client;
  /** Decoded; `image` is there when the path has it, and may be accessed with the route's right. */
  path: Record<string, string>;
  query: Record<string, string>;
  /** Checked against the route's fields; empty without a body. */
  body: Record<string, unknown>;
  /** For routes with a binary body. */
  bytes: Buffer;
  raw: http.IncomingMessage;
  /** So many bytes have been moved; returns for how many milliseconds nothing more may be. */
  spend: (bytes: number) => number;
}

/** JSON, or bytes or text with their type, or an answer that the handler has written itself. */
export type HttpAnswer =
  | { status?: number; json: unknown }
  | { status?: number; type: string; bytes: Buffer | string }
  | { status: number }
  | 'written';

export interface Route {
  method: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE';
  /** `{name}` stands for one segment. */
  path: string;
  about: string;
  /** Of {image}, or of the whole store (`*`); null: everybody. */
  right: Right | null;
  /** The right is asked for `*` though the path names an image, or the image need not exist yet. */
  scope?: 'store' | 'new image';
  query?: Record<string, Field>;
  body?: Record<string, Field>;
  /** Largest binary body; without it, bodies are JSON. */
  bytesMax?: number;
  answers: string;
  handle(request: HttpRequest, response: http.ServerResponse): Promise<HttpAnswer>;
}

/** Matches path segments; null: another route. */
export function matchPath(route: Route, segments: string[]): Record<string, string> | null {
  const wanted = route.path.split('/').slice(1);
  if (wanted.length !== segments.length) return null;
  const found: Record<string, string> = {};
  for (const [index, part] of wanted.entries()) {
    if (part.startsWith('{')) found[part.slice(1, -1)] = segments[index];
    else if (part !== segments[index]) return null;
  }
  return found;
}

/** Checks a JSON body: unknown fields are refused, so that a misspelt one is not silently left out. */
export function checkFields(value: unknown, fields: Record<string, Field>): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new HttpError(400, 'bad_request', 'the body is not a JSON object');
  const given = value as Record<string, unknown>;
  for (const name of Object.keys(given)) {
    if (!Object.hasOwn(fields, name))
      throw new HttpError(
        400,
        'bad_request',
        `there is no field "${name.slice(0, 64)}"; there are ${Object.keys(fields).join(', ')}`,
      );
  }
  for (const [name, field] of Object.entries(fields)) {
    const it = given[name];
    if (it === undefined || it === null) {
      if (field.required) throw new HttpError(400, 'bad_request', `the field "${name}" is missing: ${field.about}`);
    } else if (!fits(it, field.type)) {
      throw new HttpError(400, 'bad_request', `the field "${name}" is not of type ${field.type}: ${field.about}`);
    }
  }
  return given;
}

function fits(value: unknown, type: FieldType): boolean {
  switch (type) {
    case 'integer':
      return Number.isSafeInteger(value) && (value as number) >= 0;
    case 'generation':
      return typeof value === 'string' || (Number.isSafeInteger(value) && (value as number) >= 0);
    case 'strings':
      return Array.isArray(value) && value.length <= 1000 && value.every((it) => typeof it === 'string');
    case 'object':
      return typeof value === 'object' && !Array.isArray(value);
    default:
      return typeof value === type;
  }
}

/** The OpenAPI 3.1 description of the routes. */
export function describe(routes: Route[]): object {
  const paths: Record<string, Record<string, object>> = {};
  for (const route of routes) {
    const parameters = [
      ...[...route.path.matchAll(/\{(\w+)\}/g)].map(([, name]) => ({
        name,
        in: 'path',
        required: true,
        description: name === 'image' ? 'IMAGE, or IMAGE%2FBRANCH' : '',
        schema: { type: 'string' },
      })),
      ...Object.entries(route.query ?? {}).map(([name, field]) => ({
        name,
        in: 'query',
        required: field.required === true,
        description: field.about,
        schema: schemaOf(field.type),
      })),
    ];
    paths[route.path] ??= {};
    paths[route.path][route.method.toLowerCase()] = {
      summary: route.about,
      ...(route.right === null ? { security: [] } : { description: `Right: ${route.right}` }),
      parameters,
      ...bodyOf(route),
      responses: {
        '2XX': { description: route.answers },
        default: {
          description: 'refused',
          content: { 'application/json': { schema: { $ref: '#/components/schemas/Error' } } },
        },
      },
    };
  }
  return {
    openapi: '3.1.0',
    info: { title: 'Ribbon image server', version: '1' },
    security: [{ token: [] }, { certificate: [] }],
    paths,
    components: {
      securitySchemes: { token: { type: 'http', scheme: 'bearer' }, certificate: { type: 'mutualTLS' } },
      schemas: {
        Error: {
          type: 'object',
          required: ['error'],
          properties: {
            error: {
              type: 'object',
              required: ['code', 'message'],
              properties: { code: { type: 'string' }, message: { type: 'string' } },
            },
          },
        },
      },
    },
  };
}

function bodyOf(route: Route): object {
  if (route.bytesMax !== undefined)
    return { requestBody: { required: true, content: { 'application/octet-stream': { schema: {} } } } };
  if (route.body === undefined) return {};
  const entries = Object.entries(route.body);
  const schema = {
    type: 'object',
    additionalProperties: false,
    required: entries.filter(([, field]) => field.required).map(([name]) => name),
    properties: Object.fromEntries(
      entries.map(([name, field]) => [name, { ...schemaOf(field.type), description: field.about }]),
    ),
  };
  return { requestBody: { required: true, content: { 'application/json': { schema } } } };
}

function schemaOf(type: FieldType): object {
  if (type === 'generation') return { type: ['string', 'integer'] };
  if (type === 'strings') return { type: 'array', items: { type: 'string' } };
  return { type };
}
