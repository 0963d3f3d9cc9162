// The aedes peer: `node aedes.mjs PORT`. bench/build.py copies it to where aedes is installed.
import { createServer } from 'node:net'
import { Aedes } from 'aedes'

const broker = await Aedes.createBroker()
createServer(broker.handle).listen(Number(process.argv[2]), '127.0.0.1')
