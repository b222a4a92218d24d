/**
 * What types of JSON are, in a form in which those of TypeScript and those of OpenAPI can be compared.
 */

import ts from 'typescript';

/** A type: its name if it has one, else what it is. */
export type Shape =
  | 'string'
  | 'number'
  | 'boolean'
  | 'any object'
  | 'anything'
  | { ref: string }
  | { enum: string[] }
  | { list: Shape }
  | { map: Shape }
  | { object: Record<string, { shape: Shape; optional: boolean }> }
  | { oneOf: Shape[] };

/** Named types. */
export type Shapes = Map<string, Shape>;

// TypeScript

/** The exported types of a source file of types alone. */
export function shapesOfTypeScript(source: string): Shapes {
  const file = ts.createSourceFile('types.ts', source, ts.ScriptTarget.ES2022, true);
  const declared = new Map<string, ts.InterfaceDeclaration | ts.TypeAliasDeclaration>();
  file.forEachChild((node) => {
    if (ts.isInterfaceDeclaration(node) || ts.isTypeAliasDeclaration(node))
      declared.set(node.name.text, node);
  });

  const whole = (name: string): Shape => {
    const node = declared.get(name);
    if (node === undefined) throw new Error(`src/types has no ${name}`);
    if (ts.isTypeAliasDeclaration(node)) return of(node.type);
    const bases = node.heritageClauses?.flatMap((clause) => clause.types.map((type) => type.getText())) ?? [];
    return both([...bases.map(whole), members(node.members)]);
  };
  const members = (list: ts.NodeArray<ts.TypeElement>): Shape => {
    const object: Record<string, { shape: Shape; optional: boolean }> = {};
    for (const member of list) {
      if (!ts.isPropertySignature(member) || member.type === undefined) throw new Error(member.getText());
      object[member.name.getText()] = {
        shape: of(member.type),
        optional: member.questionToken !== undefined,
      };
    }
    return { object };
  };
  const resolved = (node: ts.TypeNode): Shape =>
    ts.isTypeReferenceNode(node) ? whole(node.typeName.getText()) : of(node);
  const of = (node: ts.TypeNode): Shape => {
    switch (node.kind) {
      case ts.SyntaxKind.StringKeyword:
        return 'string';
      case ts.SyntaxKind.NumberKeyword:
        return 'number';
      case ts.SyntaxKind.BooleanKeyword:
        return 'boolean';
      case ts.SyntaxKind.UnknownKeyword:
        return 'anything';
      case ts.SyntaxKind.ObjectKeyword:
        return 'any object';
    }
    if (ts.isParenthesizedTypeNode(node)) return of(node.type);
    if (ts.isArrayTypeNode(node)) return { list: of(node.elementType) };
    if (ts.isTypeLiteralNode(node)) return members(node.members);
    if (ts.isUnionTypeNode(node)) return either(node.types.map(of));
    if (ts.isIntersectionTypeNode(node)) return both(node.types.map((type) => resolved(bare(type))));
    if (ts.isLiteralTypeNode(node) && ts.isStringLiteral(node.literal)) return { enum: [node.literal.text] };
    if (ts.isTypeReferenceNode(node)) {
      const name = node.typeName.getText();
      if (name !== 'Record') return { ref: name };
      const [, value] = node.typeArguments ?? [];
      const shape = value === undefined ? 'anything' : of(value);
      return shape === 'anything' ? 'any object' : { map: shape };
    }
    throw new Error(`src/types has a type that is not understood: ${node.getText()}`);
  };

  return new Map([...declared.keys()].map((name) => [name, sorted(whole(name))]));
}

function bare(node: ts.TypeNode): ts.TypeNode {
  return ts.isParenthesizedTypeNode(node) ? bare(node.type) : node;
}

// OpenAPI

interface Schema {
  $ref?: string;
  type?: string | string[];
  enum?: unknown[];
  items?: Schema | false;
  prefixItems?: Schema[];
  properties?: Record<string, Schema>;
  required?: string[];
  additionalProperties?: Schema | boolean;
  oneOf?: Schema[];
  anyOf?: Schema[];
  allOf?: Schema[];
}

/** The schemas of an OpenAPI 3.1 document. */
export function shapesOfOpenApi(document: unknown): Shapes {
  const { schemas } = (document as { components: { schemas: Record<string, Schema> } }).components;
  const named = (ref: string): string => ref.replace('#/components/schemas/', '');
  const resolved = (schema: Schema): Shape => {
    const target = schema.$ref === undefined ? schema : schemas[named(schema.$ref)];
    if (target === undefined) throw new Error(`no schema ${String(schema.$ref)}`);
    return of(target);
  };
  const of = (schema: Schema): Shape => {
    if (schema.$ref !== undefined) return { ref: named(schema.$ref) };
    const choices = schema.oneOf ?? schema.anyOf;
    if (choices !== undefined) return either(choices.filter((one) => one.type !== 'null').map(of));
    if (schema.allOf !== undefined) return both(schema.allOf.map(resolved));
    if (schema.enum !== undefined) return { enum: schema.enum.filter((one) => one !== null).map(String) };
    const types = [schema.type ?? []].flat().filter((type) => type !== 'null');
    switch (types.join()) {
      case 'string':
        return 'string';
      case 'integer':
      case 'number':
        return 'number';
      case 'boolean':
        return 'boolean';
      case 'array':
        return { list: of(schema.prefixItems?.[0] ?? (schema.items === false ? {} : (schema.items ?? {}))) };
      case 'object':
        break;
      default:
        return 'anything';
    }
    if (schema.properties === undefined) {
      const values = schema.additionalProperties;
      return typeof values === 'object' && Object.keys(values).length > 0
        ? { map: of(values) }
        : 'any object';
    }
    const entries = Object.entries(schema.properties).map(([name, property]) => {
      const optional = schema.required?.includes(name) !== true;
      return [name, { shape: of(property), optional }] as const;
    });
    return { object: Object.fromEntries(entries) };
  };
  return new Map(Object.entries(schemas).map(([name, schema]) => [name, sorted(of(schema))]));
}

// Both

/** One of several: literals together, and choices within choices as choices. */
function either(shapes: readonly Shape[]): Shape {
  const all = shapes.flatMap((shape) =>
    typeof shape === 'object' && 'oneOf' in shape ? shape.oneOf : [shape],
  );
  const literals = all.flatMap((shape) => (typeof shape === 'object' && 'enum' in shape ? shape.enum : []));
  const others = all.filter((shape) => typeof shape === 'string' || !('enum' in shape));
  const oneOf = literals.length === 0 ? others : [{ enum: literals }, ...others];
  const [first] = oneOf;
  return first !== undefined && oneOf.length === 1 ? first : { oneOf };
}

/** Several objects as one; of one that is a choice, a choice of such. */
function both(shapes: readonly Shape[]): Shape {
  let merged: Shape[] = [{ object: {} }];
  for (const shape of shapes) {
    const choices = typeof shape === 'object' && 'oneOf' in shape ? shape.oneOf : [shape];
    merged = merged.flatMap((one) =>
      choices.map((other) => ({ object: { ...object(one), ...object(other) } })),
    );
  }
  return either(merged);
}

function object(shape: Shape): Record<string, { shape: Shape; optional: boolean }> {
  if (typeof shape !== 'object' || !('object' in shape))
    throw new Error(`no object: ${JSON.stringify(shape)}`);
  return shape.object;
}

/** With names, literals and choices in one order. */
function sorted(shape: Shape): Shape {
  if (typeof shape === 'string' || 'ref' in shape) return shape;
  if ('enum' in shape) return { enum: [...shape.enum].sort() };
  if ('list' in shape) return { list: sorted(shape.list) };
  if ('map' in shape) return { map: sorted(shape.map) };
  if ('oneOf' in shape) {
    const texts = shape.oneOf.map((one) => JSON.stringify(sorted(one))).sort();
    return { oneOf: texts.map((text) => JSON.parse(text) as Shape) };
  }
  const entries = Object.entries(shape.object).sort(([one], [other]) => (one < other ? -1 : 1));
  return {
    object: Object.fromEntries(
      entries.map(([name, property]) => [name, { ...property, shape: sorted(property.shape) }]),
    ),
  };
}
