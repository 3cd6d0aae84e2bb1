// Compiles src/ with the pinned solc and prints the artifacts as one JSON object: {source: {contract: output}}.
// Called by compile.py with the folder that holds node_modules; run `python -m settlement.contracts.compile`.
"use strict";

const fs = require("fs");
const path = require("path");

const [modules, sourceRoot] = process.argv.slice(2).map((argument) => path.resolve(argument));
const solc = require(path.join(modules, "solc"));

function solidityFiles(folder) {
  return fs
    .readdirSync(folder, { withFileTypes: true })
    .flatMap((entry) => {
      const full = path.join(folder, entry.name);
      return entry.isDirectory() ? solidityFiles(full) : full.endsWith(".sol") ? [full] : [];
    })
    .sort();
}

const sources = {};
for (const file of solidityFiles(sourceRoot)) {
  const name = path.relative(sourceRoot, file).split(path.sep).join("/");
  sources[name] = { content: fs.readFileSync(file, "utf8") };
}

const input = {
  language: "Solidity",
  sources,
  settings: {
    evmVersion: "cancun",
    viaIR: true,
    optimizer: { enabled: true, runs: 1000 },
    metadata: { bytecodeHash: "none" },
    outputSelection: {
      "*": {
        "*": [
          "abi",
          "evm.bytecode.object",
          "evm.deployedBytecode.object",
          "evm.deployedBytecode.immutableReferences",
        ],
      },
    },
  },
};

function findImport(name) {
  const file = path.join(modules, name);
  return fs.existsSync(file) ? { contents: fs.readFileSync(file, "utf8") } : { error: `not found: ${name}` };
}

const output = JSON.parse(solc.compile(JSON.stringify(input), { import: findImport }));
// Warnings about our own sources are refused too; the library's are not ours to mend.
const problems = (output.errors || []).filter(
  (problem) => problem.severity === "error" || !problem.sourceLocation || problem.sourceLocation.file in sources,
);
for (const problem of problems) {
  process.stderr.write(problem.formattedMessage + "\n");
}
if (problems.length > 0) {
  process.exit(1);
}
const own = Object.fromEntries(Object.entries(output.contracts).filter(([name]) => name in sources));
process.stdout.write(JSON.stringify({ compiler: solc.version(), contracts: own }));
