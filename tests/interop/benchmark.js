'use strict'
// The original at the work that benchmark.py compares, timed here, without the start of Node.
// Each line in is `[work, folder, count, source]` as JSON, each line out the seconds of the processor.

const { fork } = require('child_process')
const { randomBytes } = require('crypto')
const { once } = require('events')
const net = require('net')
const readline = require('readline')
const { promisify } = require('util')
const level = require('level')
const pump = require('pump')
const scuttleup = require('scuttleup')

async function open (path) {
  const db = level(path)
  await once(db, 'open')
  const start = now()
  const logs = scuttleup(db)
  await once(logs, 'ready')
  return { db, logs, seconds: secondsSince(start) }
}

const entries = Array.from({ length: 1000 }, () => randomBytes(100))
const now = () => process.cpuUsage()
const secondsSince = (start) => {
  const { user, system } = process.cpuUsage(start)
  return (user + system) / 1e6
}

async function timed (path, run) {
  const { db, logs } = await open(path)
  const start = now()
  await run(logs)
  const seconds = secondsSince(start)
  await db.close()
  return seconds
}

const work = {
  append: (path, count) => timed(path, async (logs) => {
    const append = promisify(logs.append.bind(logs))
    for (let i = 0; i < count; i++) await append(entries[i % 1000])
  }),

  // All at once: it stores what has gathered while it wrote the batch before.
  extend: (path, count) => timed(path, (logs) => new Promise((resolve) => {
    for (let i = 1; i < count; i++) logs.append(entries[i % 1000])
    logs.append(entries[0], resolve)
  })),

  read: (path) => timed(path, async (logs) => {
    const stream = logs.createReadStream()
    stream.on('data', () => {})
    await once(stream, 'end')
  }),

  open: async (path) => {
    const { db, seconds } = await open(path)
    await db.close()
    return seconds
  },

  replicate: async (path, count, source) => {
    const { db, logs } = await open(source)
    const server = await serve(logs)
    const seconds = await fetch(path, count, server.address().port)
    server.close()
    await db.close()
    return seconds
  },

  replicateInTwo: async (path, count, source) => {
    const child = fork(__filename, [source])
    const [port] = await once(child, 'message')
    const seconds = await fetch(path, count, port)
    child.disconnect()
    await once(child, 'exit')
    return seconds
  }
}

async function serve (logs) {
  const server = net.createServer((socket) => pump(socket, logs.createReplicationStream(), socket))
  await once(server.listen(0, '127.0.0.1'), 'listening')
  return server
}

// From connecting until the last entry is stored.
const fetch = (path, count, port) => timed(path, (logs) => new Promise((resolve) => {
  const socket = net.connect(port, '127.0.0.1')
  pump(socket, logs.createReplicationStream(), socket)
  logs.on('append', () => {
    if (--count > 0) return
    socket.destroy()
    resolve()
  })
}))

async function main () {
  if (process.argv.length > 2) { // the child of replicateInTwo, until that disconnects
    process.on('disconnect', () => process.exit())
    const { logs } = await open(process.argv[2])
    return process.send((await serve(logs)).address().port)
  }
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [name, ...args] = JSON.parse(line)
    console.log(await work[name](...args))
  }
}

main()
