// Resolves each name of the command line as Java does; lines as resolve.c writes them.
import java.net.InetAddress;
import java.net.UnknownHostException;

class Resolve {
    public static void main(String[] names) {
        for (String name : names) {
            StringBuilder found = new StringBuilder();
            long start = System.nanoTime();
            try {
                for (InetAddress address : InetAddress.getAllByName(name)) {
                    found.append(' ').append(address.getHostAddress());
                }
            } catch (UnknownHostException unknown) {
                found.append(" !").append(unknown.getMessage());
            }
            System.out.println(name + " " + (System.nanoTime() - start) / 1000 + found);
        }
    }
}
