// Resolves each name of the command line as Node's servers and clients do; lines as resolve.c writes them.
const { lookup } = require("dns").promises;

(async () => {
  for (const name of process.argv.slice(2)) {
    const start = process.hrtime.bigint();
    const found = await lookup(name, { all: true }).then(
      (all) => all.map((one) => one.address),
      (error) => [`!${error.code}`],
    );
    console.log(name, String((process.hrtime.bigint() - start) / 1000n), ...found);
  }
})();
