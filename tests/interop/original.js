'use strict'
// The original, for the tests: one database at a time, and replication on default sockets.
// Each line in is `[method, ...arguments]` as JSON, each line out what it came to.
// At the end of the input all is closed; any error ends the process.

const { once } = require('events')
const net = require('net')
const readline = require('readline')
const level = require('level')
const scuttleup = require('scuttleup')

let db, logs, server
let closing = false
let connections = []

function call (method, ...args) {
  return new Promise((resolve, reject) => {
    logs[method](...args, (err, result) => err ? reject(err) : resolve(result))
  })
}

// As the original's README has it. A default socket: without { allowHalfOpen: true }.
function replicate (socket, opts) {
  const connection = { socket, error: null }
  connection.closed = new Promise((resolve) => socket.on('close', resolve))
  socket.on('error', (err) => { connection.error = err.message })
  connections.push(connection)
  socket.pipe(logs.createReplicationStream(opts)).pipe(socket)
}

// Until what came in is in LevelDB. The original takes a write to a closed one for a reason to die.
async function stored () {
  do await new Promise(setImmediate)
  while (logs._writing || logs._batch.length)
}

const methods = {
  open: async (path, opts) => {
    closing = false
    db = level(path)
    logs = scuttleup(db, opts)
    logs.setMaxListeners(0)
    await once(logs, 'ready')
  },
  close: async () => {
    closing = true
    if (server) server.close()
    for (const { socket } of connections) socket.destroy()
    if (logs) await stored()
    if (db) await db.close()
    db = logs = server = null
    connections = []
  },

  id: async () => logs.id,
  head: async () => logs.head,
  append: (entry) => call('append', entry),
  entry: (peer, seq, opts) => call('entry', peer, seq, opts),
  del: (peer, seq) => call('del', peer, seq),
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
  },

  // Until LevelDB has the logs up to these numbers.
  until: async (head) => {
    const lacks = ([peer, seq]) => !logs.head.some((h) => h.peer === peer && h.flushed >= seq)
    while (Object.entries(head).some(lacks)) await once(logs, 'flush')
  },
  // When the next entry is stored, does nothing for so many milliseconds, then appends `entry`.
  stall: async (ms, entry) => {
    logs.once('append', () => {
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms)
      logs.append(entry)
    })
  },

  listen: async (opts) => {
    server = net.createServer((socket) => replicate(socket, opts)).listen(0, '127.0.0.1')
    await once(server, 'listening')
    return server.address().port
  },
  connect: async (port, opts) => replicate(net.connect(port, '127.0.0.1'), opts),
  // As a peer does that leaves.
  end: async () => { for (const { socket } of connections) socket.end() },
  // Until all connections are; what each broke with, null where it did not.
  closed: async () => {
    await Promise.all(connections.map((connection) => connection.closed))
    return connections.map((connection) => connection.error)
  }
}

async function main () {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [method, ...args] = JSON.parse(line)
    const result = await methods[method](...args)
    process.stdout.write(JSON.stringify(result === undefined ? null : result) + '\n')
  }
  await methods.close()
}

process.on('uncaughtException', (error) => {
  // For a connection that is gone the original reads on, also when its database has been closed.
  if (!closing || !/before open/.test(error.message)) throw error
})
process.on('unhandledRejection', (error) => { throw error })
main()
