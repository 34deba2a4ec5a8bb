'use strict'
// The original on one database, for the tests. Arguments: the path and the options as JSON.
// Each line in is `[method, ...arguments]` as JSON, each line out what it came to.
// At the end of the input the database is closed; any error ends the process.

const { once } = require('events')
const readline = require('readline')
const { promisify } = require('util')
const level = require('level')
const scuttleup = require('scuttleup')

const [path, options] = process.argv.slice(2)

async function main () {
  const db = level(path)
  const logs = scuttleup(db, JSON.parse(options))
  await once(logs, 'ready')

  const methods = {
    id: async () => logs.id,
    head: async () => logs.head,
    append: promisify(logs.append.bind(logs)),
    entry: promisify(logs.entry.bind(logs)),
    del: promisify(logs.del.bind(logs)),
    write: async (changes) => {
      const stream = logs.createWriteStream()
      for (const change of changes) stream.write(change)
      stream.end()
      await once(stream, 'finish')
    },
    read: async (opts) => {
      const changes = []
      const stream = logs.createReadStream(opts)
      stream.on('data', (change) => changes.push(change))
      await once(stream, 'end')
      return changes
    }
  }

  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [method, ...args] = JSON.parse(line)
    const result = await methods[method](...args)
    process.stdout.write(JSON.stringify(result === undefined ? null : result) + '\n')
  }
  await db.close()
}

process.on('unhandledRejection', (error) => { throw error })
main()
