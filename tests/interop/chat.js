'use strict'
// The chat of the workshop: `node chat.js NAME DATABASE ADDRESS [ADDRESS OF A FRIEND …]`.
// It is the Node side of test_chat.py, and has nothing that the workshop's exercises do not use:
// scuttleup with JSON entries over the workshop's own swarm module.

const net = require('net')
const readline = require('readline')
const level = require('level')
const scuttleup = require('scuttleup')
const topology = require('fully-connected-topology')

// The module listens on all addresses of the machine. A test stays on the loopback one.
const { listen } = net.Server.prototype
net.Server.prototype.listen = function (port) { return listen.call(this, port, '127.0.0.1') }

const [name, path, address, ...friends] = process.argv.slice(2)
const logs = scuttleup(level(path), { valueEncoding: 'json' })

topology(address, friends).on('connection', (socket) => {
  socket.pipe(logs.createReplicationStream()).pipe(socket)
})

logs.createReadStream({ live: true }).on('data', ({ entry }) => {
  console.log(`${entry.username}> ${entry.message}`)
})

readline.createInterface({ input: process.stdin }).on('line', (message) => {
  logs.append({ username: name, message })
})
